#!/usr/bin/env bash
# Runs Envoy, and drains it on SIGTERM before it ends: Envoy alone would drop every running call.
#
#   TLS_DIR        folder of server.pem, server.key and ca.pem: TLS on 50053 and mTLS on 50054
#   OTEL_EXPORTER_OTLP_ENDPOINT  http://HOST:PORT of a collector (OTLP gRPC): traces
#   DRAIN_SECONDS  longest wait for running calls; the container's stop period must be longer
#   CONFIG_DIR     folder that `python -m stack.envoy_config` filled when the image was built
#   DESCRIPTORS, ENVOY, RUN_DIR  the descriptor set, Envoy's binary, a writable folder
#
# Arguments are passed to Envoy.
set -euo pipefail

TLS_DIR=${TLS_DIR:-/etc/envoy/tls}
DRAIN_SECONDS=${DRAIN_SECONDS:-25}
CONFIG_DIR=${CONFIG_DIR:-/etc/envoy}
DESCRIPTORS=${DESCRIPTORS:-/etc/envoy/ml.binpb}
ENVOY=${ENVOY:-envoy}
RUN_DIR=${RUN_DIR:-/tmp}
# New connections are accepted for this long, so that no client is refused before it is told to go.
LISTENER_DRAIN_SECONDS=5

# Writes the configuration with the parts that are asked for, their paths and addresses filled in.
write_config() {
  local parts="" collector=otel-collector port=4317 config
  [[ -f $TLS_DIR/server.pem ]] && parts+=.tls
  if [[ -n ${OTEL_EXPORTER_OTLP_ENDPOINT:-} ]]; then
    if [[ ! $OTEL_EXPORTER_OTLP_ENDPOINT =~ ^http://([A-Za-z0-9._-]+)(:([0-9]+))?/?$ ]]; then
      echo "OTEL_EXPORTER_OTLP_ENDPOINT is '$OTEL_EXPORTER_OTLP_ENDPOINT'; it must be http://HOST:PORT" >&2
      exit 1
    fi
    parts+=.tracing collector=${BASH_REMATCH[1]} port=${BASH_REMATCH[3]:-4317}
  fi
  config=$(<"$CONFIG_DIR/envoy$parts.yaml")
  config=${config//\/etc\/envoy\/tls\//"$TLS_DIR/"}
  config=${config//\/etc\/envoy\/ml.binpb/"$DESCRIPTORS"}
  config=${config/address: otel-collector/"address: $collector"}
  config=${config/port_value: 4317/"port_value: $port"}
  printf '%s\n' "$config" > "$RUN_DIR/envoy.yaml"
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

write_config
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
