#!/usr/bin/env bash
# Start a Prefect worker in a checkout: point DVC at the remote, make the pool, deploy, have the
# server watch the runs' heartbeats, then work. Start it from the project's root.
set -euo pipefail
: "${PREFECT_API_URL:?set PREFECT_API_URL to the Prefect server, such as http://prefect:4200/api}"
pool="${STATESET_WORK_POOL:-retraining}"
export PREFECT_DEFAULT_WORK_POOL_NAME="$pool"

if [ -n "${STATESET_DVC_REMOTE:-}" ]; then
  "$(dirname "$0")/set_dvc_remote.sh"
fi

# The server may still be starting: ask for up to a minute before giving up.
for attempt in $(seq 1 30); do
  if prefect work-pool inspect "$pool" >/dev/null 2>&1; then break; fi
  if prefect work-pool create "$pool" --type process >/dev/null 2>&1; then break; fi
  if [ "$attempt" = 30 ]; then
    echo "no Prefect server answers at $PREFECT_API_URL" >&2
    exit 1
  fi
  sleep 2
done

prefect --no-prompt deploy --all
python -m flows.automations
exec prefect worker start --pool "$pool" --limit 1
