#!/usr/bin/env bash
# Runs Envoy, and on SIGTERM lets it drain before it ends: alone, Envoy would drop every call.
#
#   TLS_DIR        with server.pem, server.key and ca.pem: TLS on 50053 and mTLS on 50054
#   OTEL_EXPORTER_OTLP_ENDPOINT  http://HOST:PORT of a collector (OTLP gRPC): traces
#   DRAIN_SECONDS  that running calls have at most; the container's stop period must be longer
#   ENVOY_YAML, DESCRIPTORS, ENVOY, RUN_DIR  where things are
#
# Arguments go to Envoy.
set -euo pipefail

TLS_DIR=${TLS_DIR:-/etc/envoy/tls}
DRAIN_SECONDS=${DRAIN_SECONDS:-25}
ENVOY_YAML=${ENVOY_YAML:-/etc/envoy/envoy.yaml}
DESCRIPTORS=${DESCRIPTORS:-/etc/envoy/ml.binpb}
ENVOY=${ENVOY:-envoy}
RUN_DIR=${RUN_DIR:-/tmp}
# New connections are taken for this long, so that nobody is refused who has not been told to go.
LISTENER_DRAIN_SECONDS=5

# envoy.yaml without the parts that are not asked for.
render() {
  local wanted="" collector=otel-collector port=4317
  [[ -f $TLS_DIR/server.pem ]] && wanted+=" tls "
  if [[ -n ${OTEL_EXPORTER_OTLP_ENDPOINT:-} ]]; then
    if [[ ! $OTEL_EXPORTER_OTLP_ENDPOINT =~ ^http://([A-Za-z0-9._-]+)(:([0-9]+))?/?$ ]]; then
      echo "OTEL_EXPORTER_OTLP_ENDPOINT is '$OTEL_EXPORTER_OTLP_ENDPOINT'; it must be http://HOST:PORT" >&2
      exit 1
    fi
    wanted+=" tracing " collector=${BASH_REMATCH[1]} port=${BASH_REMATCH[3]:-4317}
  fi
  local line skip=
  while IFS= read -r line; do
    if [[ $line =~ ^\ *#\ begin\ ([a-z]+)$ ]]; then
      [[ $wanted == *" ${BASH_REMATCH[1]} "* ]] || skip=yes
    elif [[ $line =~ ^\ *#\ end\ [a-z]+$ ]]; then
      skip=
    elif [[ -z $skip ]]; then
      line=${line//\/etc\/envoy\/tls\//$TLS_DIR/}
      line=${line//\/etc\/envoy\/ml.binpb/$DESCRIPTORS}
      line=${line//address: otel-collector, port_value: 4317/address: $collector, port_value: $port}
      printf '%s\n' "$line"
    fi
  done < "$ENVOY_YAML" > "$RUN_DIR/envoy.yaml"
}

# ask METHOD PATH: the answer of Envoy's admin page, empty when there is none.
ask() {
  local port
  port=$(sed -n '/^admin:/,/port_value/s/.*port_value: *\([0-9]*\).*/\1/p' "$RUN_DIR/envoy.yaml")
  {
    printf '%s %s HTTP/1.1\r\nHost: envoy\r\nConnection: close\r\n\r\n' "$1" "$2" >&3
    timeout 2 cat <&3
  } 3<>"/dev/tcp/127.0.0.1/$port" 2>/dev/null || true
}

# active cx|rq: how many connections or calls clients have open.
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

render
"$ENVOY" -c "$RUN_DIR/envoy.yaml" --log-level warning \
  --drain-time-s "$LISTENER_DRAIN_SECONDS" --drain-strategy immediate "$@" &
pid=$!
trap drain TERM INT
code=0
wait "$pid" || code=$?
# A signal ends the first wait; the second has Envoy's own exit code.
if kill -0 "$pid" 2>/dev/null; then
  code=0
  wait "$pid" || code=$?
fi
exit "$code"
