#!/usr/bin/env bash
# Point this checkout's DVC at the remote that STATESET_DVC_REMOTE names: s3://BUCKET/PREFIX or a
# folder. It is written to .dvc/config.local, which git does not see; the keys stay in the
# environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY). May be run again with another one.
set -euo pipefail
: "${STATESET_DVC_REMOTE:?set STATESET_DVC_REMOTE, such as s3://stateset-dvc/cache}"

dvc remote add --quiet --force --local --default storage "$STATESET_DVC_REMOTE"
if [[ "$STATESET_DVC_REMOTE" == s3://* && -n "${AWS_ENDPOINT_URL:-}" ]]; then
  dvc remote modify --quiet --local storage endpointurl "$AWS_ENDPOINT_URL"
fi
