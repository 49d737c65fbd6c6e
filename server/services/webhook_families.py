"""What webhooks have sent, as Prometheus families. Pure; docs/metrics.md lists them."""

from collections.abc import Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ..webhook.delivery import WebhookStats

_WEBHOOK = ("webhook",)


def of_webhooks(webhooks: Sequence[WebhookStats]) -> list[Metric]:
    """By the webhook's name; nothing where there is none."""
    if not webhooks:
        return []
    delivered = CounterMetricFamily(
        "trimtab_webhook_delivered", "Events that the receiver took", labels=_WEBHOOK
    )
    failed = CounterMetricFamily(
        "trimtab_webhook_failed", "Attempts that the receiver did not take", labels=_WEBHOOK
    )
    dropped = CounterMetricFamily(
        "trimtab_webhook_dropped", "Events that were given up", labels=(*_WEBHOOK, "reason")
    )
    pending = GaugeMetricFamily(
        "trimtab_webhook_pending", "Events that wait to be delivered", labels=_WEBHOOK
    )
    for stats in webhooks:
        labels = (stats.name,)
        delivered.add_metric(labels, stats.delivered)
        failed.add_metric(labels, stats.failed)
        for reason in ("too_old", "refused", "no_room"):
            dropped.add_metric((*labels, reason), getattr(stats, reason))
        pending.add_metric(labels, stats.pending)
    return [delivered, failed, dropped, pending]
