#!/usr/bin/env bash
# Runs Envoy, and drains it on SIGTERM before it ends: Envoy alone would drop every running call.
#
#   TLS_DIR        folder of server.pem, server.key and ca.pem: TLS on 50053 and mTLS on 50054
#   CALLERS_DIR    folder that may hold api_keys.txt (a name and a key on each line) and
#                  client_names.txt (a name of a client certificate on each line, for mTLS): who may
#                  call. Changes are in force within two seconds; calls that run go on.
#   ML_ADDRESS     the address on which the ports are published; it only decides about a warning
#   OTEL_EXPORTER_OTLP_ENDPOINT  http://HOST:PORT of a collector (OTLP gRPC): traces
#   WAIT_SECONDS   longest wait of a call for a service that is starting; a service that has been down
#                  for longer has failed, and its calls fail at once
#   DRAIN_SECONDS  longest wait for running calls; the container's stop period must be longer
#   CONFIG_DIR     folder that `python -m stack.envoy_config` filled when the image was built
#   ENVOY, RUN_DIR  Envoy's binary, a writable folder
#
# Arguments are passed to Envoy.
set -euo pipefail

export LC_ALL=C
TLS_DIR=${TLS_DIR:-/etc/envoy/tls}
CALLERS_DIR=${CALLERS_DIR:-/etc/envoy/callers}
ML_ADDRESS=${ML_ADDRESS:-127.0.0.1}
WAIT_SECONDS=${WAIT_SECONDS:-30}
DRAIN_SECONDS=${DRAIN_SECONDS:-25}
CONFIG_DIR=${CONFIG_DIR:-/etc/envoy}
ENVOY=${ENVOY:-envoy}
RUN_DIR=${RUN_DIR:-/tmp}
# New connections are accepted for this long, so that no client is refused before it is told to go.
LISTENER_DRAIN_SECONDS=5

# Writes the configuration with the parts that are asked for, their paths and addresses filled in.
write_config() {
  local parts="" collector=otel-collector port=4317 config
  if [[ -n ${OTEL_EXPORTER_OTLP_ENDPOINT:-} ]]; then
    if [[ ! $OTEL_EXPORTER_OTLP_ENDPOINT =~ ^http://([A-Za-z0-9._-]+)(:([0-9]+))?/?$ ]]; then
      echo "OTEL_EXPORTER_OTLP_ENDPOINT is '$OTEL_EXPORTER_OTLP_ENDPOINT'; it must be http://HOST:PORT" >&2
      exit 1
    fi
    parts+=.tracing collector=${BASH_REMATCH[1]} port=${BASH_REMATCH[3]:-4317}
  fi
  if [[ ! $WAIT_SECONDS =~ ^[0-9]{1,4}$ ]]; then
    echo "WAIT_SECONDS is '$WAIT_SECONDS'; it must be a number of seconds" >&2
    exit 1
  fi
  [[ -f $TLS_DIR/server.pem ]] && parts+=.tls
  [[ -f $CALLERS_DIR/api_keys.txt ]] && parts+=.keys && checked+=(api_keys)
  [[ $parts == *.tls* && -f $CALLERS_DIR/client_names.txt ]] && parts+=.names && checked+=(client_names)
  config=$(<"$CONFIG_DIR/envoy$parts.yaml")
  config=${config//\/etc\/envoy\/tls\//"$TLS_DIR/"}
  config=${config//\/etc\/envoy\/callers\//"$RUN_DIR/callers/"}
  config=${config//\/etc\/envoy\/ml.binpb/"$CONFIG_DIR/ml.binpb"}
  config=${config//\/etc\/envoy\/connections.wasm/"$CONFIG_DIR/connections.wasm"}
  # As stack/envoy_config.py does it.
  config=${config//wait_seconds: 30/"wait_seconds: $WAIT_SECONDS"}
  config=${config//request_timeout: 45s/"request_timeout: $((10#$WAIT_SECONDS + 15))s"}
  config=${config//not complete within 45 s/"not complete within $((10#$WAIT_SECONDS + 15)) s"}
  config=${config/address: otel-collector/"address: $collector"}
  config=${config/port_value: 4317/"port_value: $port"}
  printf '%s\n' "$config" > "$RUN_DIR/envoy.yaml"
}

# say MESSAGE: a warning, in JSON as the other lines of the log; it holds no quotation marks.
say() {
  printf '{"level":"warning","logger":"callers","message":"%s"}\n' "$1"
}

# write_check api_keys|client_names: puts the lines of the file in CALLERS_DIR into the image's
# api_keys.json or client_names.json, as stack/callers.py does it. A file that is not valid changes
# nothing.
write_check() {
  local kind=$1 line number=0 entries="" config
  local -A keys=()
  config=$(<"$CONFIG_DIR/$kind.json")
  while read -r line || [[ -n $line ]]; do
    number=$((number + 1))
    [[ -z $line || $line == \#* ]] && continue
    if [[ $kind == client_names && $line =~ $NAME_LINE ]]; then
      entries+="{\"authenticated\":{\"principal_name\":{\"exact\":\"$line\"}}},"
      [[ $line == *[=/]* ]] || entries+="{\"authenticated\":{\"principal_name\":{\"exact\":\"CN=$line\"}}},"
    elif [[ $kind == client_names ]]; then
      say "client_names.txt: line $number must be printable ASCII without quotation marks and backslashes"
      return 1
    elif [[ ! $line =~ $KEY_LINE ]]; then
      say "api_keys.txt: line $number must be a name (a letter, then letters, digits or ._-; at most 64 characters) and a key (16 to 256 letters, digits or ._~+/=-)"
      return 1
    elif [[ -n ${keys[${BASH_REMATCH[2]}]:-} ]]; then
      say "api_keys.txt: line $number has the key of another line"
      return 1
    else
      keys[${BASH_REMATCH[2]}]=1
      entries+="{\"client\":\"${BASH_REMATCH[1]}\",\"key\":\"${BASH_REMATCH[2]}\"},"
    fi
  done < "$CALLERS_DIR/$kind.txt" || return 1
  config=${config/'"credentials": []'/"\"credentials\": [${entries%,}]"}
  config=${config/'"principals": ['/"\"principals\": [$entries"}
  mkdir -p "$RUN_DIR/callers"
  (umask 077 && printf '%s' "$config" > "$RUN_DIR/callers/$kind.part")
  # Envoy notices a file that is moved into place.
  mv "$RUN_DIR/callers/$kind.part" "$RUN_DIR/callers/$kind.json"
}
KEY_LINE='^([A-Za-z][A-Za-z0-9._-]{0,63})[[:blank:]]+([A-Za-z0-9._~+/=-]{16,256})$'
# Printable ASCII but the quotation mark and the backslash, which end a range each.
NAME_LINE='^[] !#-[^-~]+$'

# Writes the checks again when their files change.
watch_checks() {
  local -A before=()
  local kind now
  for kind in "${checked[@]}"; do before[$kind]=$(<"$CALLERS_DIR/$kind.txt"); done
  while sleep 1; do
    for kind in "${checked[@]}"; do
      now=$(cat "$CALLERS_DIR/$kind.txt" 2>/dev/null) || continue # it is being replaced
      [[ $now == "${before[$kind]}" ]] && continue
      before[$kind]=$now
      if write_check "$kind"; then say "$kind.txt has changed, and is in force"; fi
    done
  done
}

# Tells Envoy which services have failed: those without a healthy replica for more than WAIT_SECONDS.
watch_services() {
  local -A healthy_at=() failed=()
  local line name now
  while sleep 1; do
    while read -r line; do
      [[ $line =~ ^cluster\.(model_mgmt|text|vision|http)\.membership_healthy:\ ([0-9]+) ]] || continue
      name=${BASH_REMATCH[1]}
      if ((BASH_REMATCH[2])) || [[ -z ${healthy_at[$name]:-} ]]; then healthy_at[$name]=$SECONDS; fi
      if ((SECONDS - healthy_at[$name] > WAIT_SECONDS)); then now=100; else now=0; fi
      [[ ${failed[$name]:-0} == "$now" ]] && continue
      failed[$name]=$now
      ask POST "/runtime_modify?ml.failed.$name=$now" >/dev/null
    done < <(ask GET "/stats?filter=membership_healthy$")
  done
}

# ask METHOD PATH: the response of Envoy's admin page, empty if there is none.
ask() {
  local port
  port=$(sed -n '/^admin:/,/port_value/s/.*port_value: *\([0-9]*\).*/\1/p' "$RUN_DIR/envoy.yaml")
  {
    printf '%s %s HTTP/1.1\r\nHost: envoy\r\nConnection: close\r\n\r\n' "$1" "$2" >&3
    timeout 2 cat <&3
  } 3<>"/dev/tcp/127.0.0.1/$port" 2>/dev/null || true
}

# active cx|rq: the number of connections or calls that clients have open.
active() {
  ask GET "/stats?filter=^http.grpc.downstream_$1_active$" | sed -n 's/^http.grpc.*: \([0-9]*\).*/\1/p'
}

drain() {
  trap '' TERM INT
  local start=$SECONDS
  ask POST '/drain_listeners?graceful' >/dev/null
  while ((SECONDS - start < DRAIN_SECONDS)); do
    if [[ $(active rq) == 0 ]]; then
      [[ $(active cx) == 0 ]] && break
      ((SECONDS - start > LISTENER_DRAIN_SECONDS)) && break
    fi
    sleep 0.2
  done
  kill -TERM "$pid" 2>/dev/null || true
}

checked=()
write_config
for kind in "${checked[@]}"; do write_check "$kind" || exit 1; done
if [[ ! $ML_ADDRESS =~ ^(127\.|localhost$|::1$|\[::1\]$) && ! " ${checked[*]} " == *" api_keys "* ]]; then
  say "the ports are published on $ML_ADDRESS without API keys: whoever reaches them may load, use and unload models"
fi
watchers=()
trap 'kill "${watchers[@]}" 2>/dev/null || true' EXIT
watch_services &
watchers+=($!)
if ((${#checked[@]})); then
  watch_checks &
  watchers+=($!)
fi
"$ENVOY" -c "$RUN_DIR/envoy.yaml" --log-level warning \
  --drain-time-s "$LISTENER_DRAIN_SECONDS" --drain-strategy immediate "$@" &
pid=$!
trap drain TERM INT
code=0
wait "$pid" || code=$?
# A signal ends the first wait; the second returns Envoy's own exit code.
if kill -0 "$pid" 2>/dev/null; then
  code=0
  wait "$pid" || code=$?
fi
exit "$code"
