"""What an operator sees of versions: the list, one of them in full, what happened to them."""

from collections.abc import Callable, Mapping

from trimtab.proto import admin_pb2 as pb
from trimtab.registry.directory import ModelDirectory
from trimtab.registry.errors import RegistryError
from trimtab.registry.state import State

from ...errors import NotFoundError
from ...lifecycle.version_plan import ModelStatus, VersionStatus
from ...logs.traffic_log import TrafficStats
from ..handlers import Handler
from . import messages
from .calls import Models, on_thread


class VersionMethods:
    """ListVersions, DescribeVersion, GetHistory."""

    def __init__(self, models: Models, traffic_stats: Callable[[str], TrafficStats]) -> None:
        self._models = models
        self._traffic_stats = traffic_stats

    def handlers(self) -> Mapping[str, Handler]:
        """By the method's own name."""
        path = self._models.path
        return {
            "ListVersions": on_thread(pb.ListVersionsRequest, self.list_versions, path),
            "DescribeVersion": on_thread(pb.DescribeVersionRequest, self._describe, path),
            "GetHistory": on_thread(pb.GetHistoryRequest, self._history, path),
        }

    def list_versions(self, request: pb.ListVersionsRequest) -> pb.ListVersionsResponse:
        """Reads the directory: not on an event loop."""
        if request.model_name:
            found = [self._models.status(request.model_name)]
        else:
            self._models.registry.models()  # OSError, if the directory is away
            found = list(self._models.statuses())
        return pb.ListVersionsResponse(models=map(self._versions, found))

    def _describe(self, request: pb.DescribeVersionRequest) -> pb.VersionDescription:
        directory = self._models.directory(request.model_name)
        status = self._models.status(request.model_name)
        version = request.version or status.champion
        if not version:
            raise NotFoundError(f"model '{request.model_name}' has no champion to describe")
        message = messages.describe(directory, version)
        for each in status.versions:
            if each.version == version:
                message.info.MergeFrom(_info(each))
        if not message.managed and version == status.champion:
            message.info.role = "champion"
        return message

    def _history(self, request: pb.GetHistoryRequest) -> pb.GetHistoryResponse:
        history = self._models.directory(request.model_name).history()
        return messages.history_response(request.model_name, history, request)

    def _versions(self, status: ModelStatus) -> pb.ModelVersions:
        directory = self._models.registry.model(status.model)
        known = messages.state_or_none(directory) if status.managed else None
        state = known or State(status.revision, status.champion, status.previous)
        message = pb.ModelVersions(model_name=status.model, managed=status.managed)
        messages.set_state(message, state)
        log = self._traffic_stats(status.model)
        message.log_rows_written = log.rows_written
        message.log_rows_dropped = log.rows_dropped
        message.log_failing = log.failing
        for version in status.versions:
            info = message.versions.add()
            info.CopyFrom(_info(version))
            messages.set_decisions(info, state)
            if status.managed:
                _add_manifest(info, directory)
        return message


def _info(version: VersionStatus) -> pb.VersionInfo:
    """What the lifecycle knows; a role is the registry's to tell, where there is one."""
    return pb.VersionInfo(
        version=version.version,
        state=version.state.value,
        reason=version.reason,
        requests=version.stats.success.count if version.stats else 0,
        rows=version.stats.rows if version.stats else 0,
    )


def _add_manifest(info: pb.VersionInfo, directory: ModelDirectory) -> None:
    try:
        messages.set_manifest(info, directory.manifest(info.version))
    except RegistryError:
        return  # the lifecycle's reason says it
