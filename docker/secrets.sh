#!/usr/bin/env bash
# Makes docker/.env with fresh secrets for compose.yaml. Leaves an existing one alone.
set -euo pipefail
file="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/.env"
if [ -e "$file" ]; then
    echo "$file is there already; delete it for new secrets (the database keeps its old password)." >&2
    exit 0
fi
umask 077
random() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }
printf 'POSTGRES_PASSWORD=%s\nJWT_SECRET=%s\n' "$(random)" "$(random)" >"$file"
echo "Wrote $file."
