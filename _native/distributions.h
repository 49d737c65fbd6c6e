// Tail probabilities and quantiles that statistics of counts are held against: normal, chi-square
// central and not, Kolmogorov-Smirnov. Pure functions of doubles without state, from any thread.
// Arguments are checked by the callers: degrees of freedom at least 1, 0 < alpha <= 1/2.
//
// Accuracies were measured against scipy 1.17 and sums in 60 digits; test_divergence.py holds the
// functions to them.
#pragma once

#include <math.h>

enum {
  MAX_STEPS = 64,       // of any Newton iteration; a few are usual
  SMALL_SAMPLE = 100,   // up to here KS is exact
  SUMMED_SAMPLE = 256,  // up to here its one-sided tail is a sum, from there on a series
};

static const double CUMULANTS_FROM = 1000;  // x of noncentral chi-square: by cumulants, not a sum
static const double ONE_SIDED_FROM = 1.4;   // sqrt(n) D: from here on D+ and D- hardly ever meet

// z with P(Z > z) = alpha. Newton on the logarithm of the tail from 26.2.23 of Abramowitz & Stegun,
// which is off by 4.5e-4 at most.
static inline double normal_quantile(double alpha) {
  const double t = sqrt(-2 * log(alpha));
  double z = t - (2.515517 + t * (0.802853 + t * 0.010328)) /
                     (1 + t * (1.432788 + t * (0.189269 + t * 0.001308)));
  for (int step = 0; step < 3; step++) {
    const double tail = 0.5 * erfc(z * M_SQRT1_2);
    z += log(tail / alpha) * tail * sqrt(2 * M_PI) * exp(0.5 * z * z);
  }
  return z;
}

// y^a e^-y / Gamma(a + 1) for real a >= 0: by Stirling's series, in Loader's form ("Fast and
// accurate computation of binomial probabilities", 2000) in which nothing large cancels. A small
// argument of Gamma is made large enough for the series by its recurrence.
static inline double poisson_mass(double a, double y) {
  if (y <= 0) return a > 0 ? 0 : 1;
  double large = a, product = 1;
  for (; large < 16; large += 1) product *= large + 1;
  const double square = 1 / (large * large);
  const double error =
      (1 / 12.0 - square * (1 / 360.0 - square * (1 / 1260.0 - square / 1680))) / large;
  double exponent;
  if (large > a) {
    exponent = a * log(y) - y + large * (1 - log(large));
  } else {
    const double t = (y - a) / a;
    exponent = a * ((t < -0.5 ? log(y / a) : log1p(t)) - t);
  }
  return product * exp(exponent - error) / sqrt(2 * M_PI * large);
}

// P(X > y) of a gamma variable of shape a > 0 and scale 1: power series below the mean, above it
// the continued fraction by Lentz's method (DLMF 8.11.4 and 8.9.2). Relative error about 1e-13.
static inline double gamma_tail(double a, double y) {
  if (y <= 0) return 1;
  if (isinf(y)) return 0;
  const double mass = poisson_mass(a, y);
  if (y < a + 1) {
    double term = 1, sum = 1;
    for (double n = a + 1; term > 1e-17 * sum; n += 1) sum += term *= y / n;
    return fmax(0, 1 - mass * sum);
  }
  double b = y + 1 - a, c = 1e300, d = 1 / b, fraction = d;
  for (double n = 1; n < 1e6; n += 1) {
    b += 2;
    const double numerator = -n * (n - a);
    d = 1 / (b + numerator * d);
    c = b + numerator / c;
    fraction *= c * d;
    if (fabs(c * d - 1) < 1e-15) break;
  }
  return fmin(1, mass * a * fraction);
}

static inline double chi2_tail(double freedom, double x) { return gamma_tail(freedom / 2, x / 2); }

// x with P(X > x) = alpha: Newton on the logarithm of the tail from Wilson and Hilferty's cube.
static inline double chi2_quantile(double freedom, double alpha) {
  if (freedom == 1) {
    const double z = normal_quantile(alpha / 2);
    return z * z;
  }
  const double spread = 2 / (9 * freedom), a = freedom / 2;
  const double root = 1 - spread + normal_quantile(alpha) * sqrt(spread);
  double x = freedom * root * root * root;
  for (int step = 0; step < MAX_STEPS; step++) {
    const double tail = chi2_tail(freedom, x), density = poisson_mass(a, x / 2) * a / x;
    const double move = log(tail / alpha) * tail / density;
    x = fmax(x / 2, x + move);
    if (fabs(move) < 1e-9 * x) break;
  }
  return x;
}

// P(X > x) of a noncentral chi-square variable, and in *slope its derivative by `noncentrality`,
// which is the density with two more degrees of freedom: the mixture of central tails by Poisson
// weights, summed from the heaviest weight to both sides (Benton and Krishnamoorthy, Computational
// Statistics & Data Analysis 43, 2003). Each tail comes from its neighbour, so that a term costs
// two divisions; some 10 sqrt(noncentrality) terms count.
static inline double noncentral_tail(double freedom, double noncentrality, double x,
                                     double *slope) {
  const double a = freedom / 2, y = x / 2, h = noncentrality / 2, mode = floor(h);
  const double weight0 = poisson_mass(mode, h), tail0 = gamma_tail(a + mode, y);
  const double mass0 = poisson_mass(a + mode, y);
  double weight = weight0, tail = tail0, mass = mass0, sum = 0, masses = 0;
  for (double j = mode; weight > 1e-17; j += 1) {
    sum += weight * tail;
    masses += weight * mass;
    tail += mass;
    mass *= y / (a + j + 1);
    weight *= h / (j + 1);
  }
  weight = weight0, tail = tail0, mass = mass0;
  for (double j = mode; j > 0 && weight > 1e-17; j -= 1) {
    weight *= j / h;
    mass *= (a + j) / y;
    tail = fmax(0, tail - mass);
    sum += weight * tail;
    masses += weight * mass;
  }
  *slope = masses / 2;
  return sum;
}

// x with P(X > x) = alpha of a noncentral chi-square variable, by Cornish and Fisher's expansion to
// the fifth of the cumulants' orders; z is the normal quantile.
static inline double noncentral_quantile(double freedom, double noncentrality, double z) {
  // The r-th cumulant is 2^(r-1) (r-1)! (freedom + r noncentrality).
  const double variance = 2 * (freedom + 2 * noncentrality), sd = sqrt(variance);
  const double g1 = 8 * (freedom + 3 * noncentrality) / (variance * sd);
  const double g2 = 48 * (freedom + 4 * noncentrality) / (variance * variance);
  const double g3 = 384 * (freedom + 5 * noncentrality) / (variance * variance * sd);
  const double g4 = 3840 * (freedom + 6 * noncentrality) / (variance * variance * variance);
  const double zz = z * z;
  const double w1 = g1 * (zz - 1) / 6;
  const double w2 = g2 * z * (zz - 3) / 24 - g1 * g1 * z * (2 * zz - 5) / 36;
  const double w3 = g3 * ((zz - 6) * zz + 3) / 120 - g1 * g2 * ((zz - 5) * zz + 2) / 24 +
                    g1 * g1 * g1 * ((12 * zz - 53) * zz + 17) / 324;
  const double w4 = g4 * ((zz - 10) * zz + 15) / 720 - g1 * g3 * ((2 * zz - 17) * zz + 21) / 180 -
                    g2 * g2 * ((3 * zz - 24) * zz + 29) / 384 +
                    g1 * g1 * g2 * ((14 * zz - 103) * zz + 107) / 288 -
                    g1 * g1 * g1 * g1 * ((252 * zz - 1688) * zz + 1511) / 7776;
  return freedom + noncentrality + sd * (z + w1 + w2 + w3 + w4 * z);
}

// The largest noncentrality at which x is beyond the upper alpha point; 0 if it is not at 0 either.
// For alpha >= 1e-6 it is off by less than 1e-6 (1 + noncentrality), up to CUMULANTS_FROM by 1e-8.
static inline double noncentrality_bound(double freedom, double x, double alpha) {
  if (chi2_tail(freedom, x) >= alpha) return 0;
  // X has a part Z^2, Z being normal about sqrt(noncentrality): a larger noncentrality than `most`
  // would make it likelier than alpha that this part alone exceeds x.
  const double z = normal_quantile(alpha), most = (sqrt(x) - z) * (sqrt(x) - z);
  if (x > 1e12 * freedom) return most;
  double bound = most;
  for (int step = 0; step < MAX_STEPS; step++) {
    const double rate = 1 + 2 * z / sqrt(2 * (freedom + 2 * bound));
    const double move = (x - noncentral_quantile(freedom, bound, z)) / rate;
    bound = fmin(most, fmax(0, bound + move));
    if (fabs(move) < 1e-12 * x) break;
  }
  if (x > CUMULANTS_FROM) return bound;
  double low = 0, high = most;
  for (int step = 0; step < MAX_STEPS; step++) {
    double slope;
    const double tail = noncentral_tail(freedom, bound, x, &slope);
    if (tail < alpha) low = bound; else high = bound;
    double next = bound - log(tail / alpha) * tail / slope;
    if (!(next > low && next < high)) next = (low + high) / 2;
    const double move = next - bound;
    bound = next;
    if (fabs(move) < 1e-8 * (1 + bound)) break;
  }
  return bound;
}

// P(D+ >= d) of the one-sided statistic of n values (Birnbaum and Tingey, Annals of Mathematical
// Statistics 22, 1951): all terms are positive, so nothing cancels.
static inline double one_sided_sum(double n, double d) {
  double sum = 0, choices = 0;  // ln of n over j
  for (double j = 0; j <= n * (1 - d); j += 1) {
    const double at = d + j / n;
    if (at < 1) sum += exp(choices + (j - 1) * log(at) + (n - j) * log1p(-at));
    choices += log((n - j) / (j + 1));
  }
  return d * sum;
}

// The same for large n, with z = sqrt(n) d: the logarithm of Smirnov's expansion (1944), where far
// fewer terms are needed in the tail than without the logarithm; the term in 1/n^2 was found from
// the sum in 60 digits.
static inline double one_sided_series(double n, double z) {
  const double r = 1 / sqrt(n), zz = z * z;
  return exp(-2 * zz - r * z * (2 / 3.0) + r * r * zz * (1 - zz) * (4 / 9.0) +
             r * r * r * z * (4 / 45.0 - zz * (88 / 405.0)) -
             r * r * r * r * zz * (4 / 45.0 - zz * (128 / 405.0 - zz * (32 / 135.0))));
}

// 2 sum (-1)^(k-1) e^(-2 k^2 z^2) (1 + ...) from k = first on: the distribution of D for large n
// with three terms of correction (Li-Chien, Acta Mathematica Sinica 6, 1956; the same numbers as
// Pelz and Good, Journal of the Royal Statistical Society B 38, 1976, but no loss in the tail).
static inline double two_sided_series(double n, double z, int first) {
  const double r = 1 / sqrt(n);
  double sum = 0;
  for (int k = first;; k++) {
    const double odd = k & 1, kk = (double)k * k, a = kk * z * z, size = exp(-2 * a);
    if (size < 1e-18) return sum;
    const double f1 = kk - odd, f2 = 5 * kk + 22 - 15 * odd;
    const double term = 1 - r * kk * z * (2 / 3.0) -
                        r * r * (f1 - 4 * (f1 + 3) * a + 8 * a * a) / 18 +
                        r * r * r * kk * z * (f2 / 5 - 4 * (f2 + 45) * a / 15 + 8 * a * a) / 27;
    sum += (odd > 0 ? 2 : -2) * size * term;
  }
}

// P(D >= d) for a small n with n d < 15: Durbin's matrix as Marsaglia, Tsang and Wang write it
// (Journal of Statistical Software 8/18, 2003), of whose power only one row is computed (Carvalho,
// Journal of Statistical Software 65/3, 2015).
static inline double two_sided_exact(int n, double d) {
  enum { SIZE = 32 };
  double first[SIZE], last[SIZE], inverse_factorial[SIZE + 1], row[SIZE] = {0}, next[SIZE];
  const int k = (int)(n * d) + 1, m = 2 * k - 1;
  const double h = k - n * d;
  inverse_factorial[0] = 1;
  for (int i = 1; i <= m; i++) inverse_factorial[i] = inverse_factorial[i - 1] / i;
  // Entry (i, j) is 1 / (i - j + 1)!, of the first column and, mirrored, the last row less a power.
  double power = 1;
  for (int i = 0; i < m; i++) {
    power *= h;
    first[i] = last[m - 1 - i] = (1 - power) * inverse_factorial[i + 1];
  }
  const double corner = 1 - 2 * power + (h > 0.5 ? pow(2 * h - 1, m) : 0);
  first[m - 1] = last[0] = corner * inverse_factorial[m];
  row[k - 1] = 1;
  for (int step = 1; step <= n; step++) {
    for (int j = 0; j < m; j++) {
      double sum = 0;
      for (int i = j > 0 ? j - 1 : 0; i < m; i++) {
        const double entry =
            i == m - 1 ? last[j] : j == 0 ? first[i] : inverse_factorial[i - j + 1];
        sum += row[i] * entry;
      }
      next[j] = sum * step / n;
    }
    for (int j = 0; j < m; j++) row[j] = next[j];
  }
  return 1 - row[k - 1];
}

// P(D >= d) of the two-sided one-sample statistic of n >= 1 values, n a whole number. Far out one
// side is exceeded alone: then twice the one-sided tail is precise (Simard and L'Ecuyer, Journal of
// Statistical Software 39/11, 2011).
static inline double ks_tail(double n, double d) {
  const double z = sqrt(n) * d;
  if (2 * n * d <= 1) return 1;
  if (d >= 1) return 0;
  double tail;
  if (d >= 0.5) {  // D+ and D- cannot both be
    tail = 2 * (n <= SUMMED_SAMPLE ? one_sided_sum(n, d) : one_sided_series(n, z));
  } else if (n <= SMALL_SAMPLE && n * d < 15 && z < 2) {
    tail = two_sided_exact((int)n, d);
  } else if (z >= ONE_SIDED_FROM) {
    tail = 2 * (n <= SUMMED_SAMPLE ? one_sided_sum(n, d) : one_sided_series(n, z)) +
           two_sided_series(n, z, 2);
  } else {
    tail = z < 0.2 ? 1 : two_sided_series(n, z, 1);  // at 0.2 it is 1 - 5e-13
  }
  return fmin(1, fmax(0, tail));
}
