"""An S3 server and a registry for the attacks, as the tests of pipelines have them."""

from tests.pipelines.conftest import (  # noqa: F401 - fixtures
    _s3_server,
    make_cascade,
    registry,
    run,
    s3_bucket,
    shared_root,
    stage_folder,
)
