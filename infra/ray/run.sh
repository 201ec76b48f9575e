#!/bin/sh
# The run on a cluster of `ray up`, sent to its head by `ray exec`. The same command again continues.
set -eu
exec diffbfr run --recipe smoke --root s3://diffbfr/smoke \
    --set cluster.address=auto --set cluster.num_workers=2 --set cluster.min_workers=1 \
    --set tracking.uri=http://mlflow:5000
