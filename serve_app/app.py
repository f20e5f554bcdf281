"""The deployment graph on one screen.

HTTP → Ingress → Codec (decodes) → Stylizer (paints) → Codec (encodes) → Ingress → HTTP
       JobRunner → Codec …, where jobs are enabled
"""

from typing import Any, cast

from ray import serve

from serve_app.deployments.codec import Codec
from serve_app.deployments.ingress import Ingress
from serve_app.deployments.job_runner import JobRunner
from serve_app.deployments.stylizer import Stylizer
from serve_app.settings import Settings, load_settings


def build(args: dict[str, Any]) -> serve.Application:
    """Returns the application `animegan`; Serve calls it with the `args` of the YAML.

    Raises:
        SettingsError: naming each wrong key of `args`.
    """
    settings = load_settings(Settings, args, "args")
    # Serve's decorator turns these classes into Deployments, but its types do not say so.
    parts = (Ingress, Codec, Stylizer, JobRunner)
    ingress, codec, stylizer, job_runner = (cast("serve.Deployment", part) for part in parts)
    painting = stylizer.bind(settings)
    coding = codec.bind(painting)
    if not settings.jobs.enabled:
        return ingress.bind(settings, coding)
    return ingress.bind(settings, coding, job_runner.bind(settings, coding, painting))
