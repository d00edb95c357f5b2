;; Limits the open connections of each address, and closes those on which nothing ever arrives.
;;
;; Envoy has a limit of all connections, and none by address. This filter runs in its Wasm runtime
;; (ABI: https://github.com/proxy-wasm/spec, 0.2.1): once for a new connection, once for its end, and
;; for each read, where it compares two numbers. Its configuration is "LIMIT SECONDS".
;; stack/envoy_config.py compiles it.
;;
;; Addresses are counted by 16 bits of a hash, so that memory is bounded: two may share a counter.
(module
  (import "env" "proxy_get_property"
    (func $get_property (param i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_get_shared_data"
    (func $get_shared_data (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_set_shared_data"
    (func $set_shared_data (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_close_stream" (func $close_stream (param i32) (result i32)))
  (import "env" "proxy_get_buffer_bytes"
    (func $get_buffer_bytes (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_set_tick_period_milliseconds" (func $set_tick_period (param i32) (result i32)))
  (import "env" "proxy_get_current_time_nanoseconds" (func $get_time (param i32) (result i32)))
  (import "env" "proxy_set_effective_context" (func $set_context (param i32) (result i32)))

  ;;     0  where the host puts results: pointer, size, version; the counter to write; the time
  ;;    32  "source\00address", the name of the property
  ;;    64  the key of a counter: "cx" and 16 bits of the address's hash
  ;;  1024  what the host allocates: one result at a time, which is used before the next
  ;; 64 Ki  a connection's slot, by the low 16 bits of its id: the id while it is silent, else 0
  ;; 320 Ki the last 64 Ki connections in order: id and the second when it was opened
  (memory (export "memory") 13)
  (data (i32.const 32) "source\00address")
  (data (i32.const 64) "cx")
  (global $result i32 (i32.const 1024))
  (global $silent i32 (i32.const 65536))
  (global $queue i32 (i32.const 327680))
  (global $limit (mut i32) (i32.const 0))
  (global $seconds (mut i32) (i32.const 0))
  (global $head (mut i32) (i32.const 0))
  (global $tail (mut i32) (i32.const 0))

  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param i32) (result i32)
    (select (global.get $result) (i32.const 0) (i32.le_u (local.get 0) (i32.const 60000))))
  (func (export "proxy_on_context_create") (param i32 i32))
  (func (export "proxy_on_vm_start") (param i32 i32) (result i32) (i32.const 1))

  ;; Reads "LIMIT SECONDS".
  (func (export "proxy_on_configure") (param $id i32) (param $size i32) (result i32)
    (local $at i32) (local $byte i32) (local $number i32)
    (if (call $get_buffer_bytes
          (i32.const 7) (i32.const 0) (local.get $size) (i32.const 0) (i32.const 4))
      (then (return (i32.const 0))))
    (loop $next
      (if (i32.lt_u (local.get $at) (local.get $size))
        (then
          (local.set $byte (i32.load8_u (i32.add (i32.load (i32.const 0)) (local.get $at))))
          (if (i32.eq (local.get $byte) (i32.const 32))
            (then (global.set $limit (local.get $number)) (local.set $number (i32.const 0)))
            (else (local.set $number
              (i32.add (i32.mul (local.get $number) (i32.const 10))
                       (i32.sub (local.get $byte) (i32.const 48))))))
          (local.set $at (i32.add (local.get $at) (i32.const 1)))
          (br $next))))
    (global.set $seconds (local.get $number))
    (drop (call $set_tick_period (i32.const 1000)))
    (i32.const 1))

  (func $now (result i32)
    (drop (call $get_time (i32.const 16)))
    (i32.wrap_i64 (i64.div_u (i64.load (i32.const 16)) (i64.const 1000000000))))

  ;; Writes the key of the counter for this connection's address; 0 if it has none. The hash is
  ;; FNV-1a of the text before the last colon, which is before the port.
  (func $key (result i32)
    (local $text i32) (local $size i32) (local $at i32) (local $hash i32)
    (if (call $get_property (i32.const 32) (i32.const 14) (i32.const 0) (i32.const 4))
      (then (return (i32.const 0))))
    (local.set $text (i32.load (i32.const 0)))
    (local.set $size (i32.load (i32.const 4)))
    (loop $shorter
      (if (i32.eqz (local.get $size)) (then (return (i32.const 0))))
      (local.set $size (i32.sub (local.get $size) (i32.const 1)))
      (br_if $shorter
        (i32.ne (i32.load8_u (i32.add (local.get $text) (local.get $size))) (i32.const 58))))
    (local.set $hash (i32.const 0x811c9dc5))
    (loop $next
      (if (i32.lt_u (local.get $at) (local.get $size))
        (then
          (local.set $hash (i32.mul (i32.const 0x01000193)
            (i32.xor (local.get $hash)
              (i32.load8_u (i32.add (local.get $text) (local.get $at))))))
          (local.set $at (i32.add (local.get $at) (i32.const 1)))
          (br $next))))
    (i32.store16 (i32.const 66)
      (i32.xor (local.get $hash) (i32.shr_u (local.get $hash) (i32.const 16))))
    (i32.const 1))

  ;; Adds to the counter of this connection's address, which all threads share, and returns it.
  (func $count (param $change i32) (result i32)
    (local $value i32) (local $tries i32)
    (if (i32.eqz (call $key)) (then (return (i32.const 0))))
    (loop $again
      (local.set $value (i32.const 0))
      (i32.store (i32.const 8) (i32.const 0))
      (if (i32.eqz (call $get_shared_data
            (i32.const 64) (i32.const 4) (i32.const 0) (i32.const 4) (i32.const 8)))
        (then (local.set $value (i32.load (i32.load (i32.const 0))))))
      (local.set $value (i32.add (local.get $value) (local.get $change)))
      (if (i32.lt_s (local.get $value) (i32.const 0)) (then (local.set $value (i32.const 0))))
      (i32.store (i32.const 12) (local.get $value))
      (local.set $tries (i32.add (local.get $tries) (i32.const 1)))
      ;; 8: another thread was faster.
      (br_if $again (i32.and
        (i32.eq (i32.const 8) (call $set_shared_data
          (i32.const 64) (i32.const 4) (i32.const 12) (i32.const 4) (i32.load (i32.const 8))))
        (i32.lt_u (local.get $tries) (i32.const 100)))))
    (local.get $value))

  (func $slot (param $id i32) (result i32)
    (i32.add (global.get $silent)
      (i32.shl (i32.and (local.get $id) (i32.const 0xffff)) (i32.const 2))))
  (func $entry (param $at i32) (result i32)
    (i32.add (global.get $queue)
      (i32.shl (i32.and (local.get $at) (i32.const 0xffff)) (i32.const 3))))

  ;; 2: the connection of the caller.
  (func $close (drop (call $close_stream (i32.const 2))))

  (func (export "proxy_on_new_connection") (param $id i32) (result i32)
    (if (i32.gt_u (call $count (i32.const 1)) (global.get $limit))
      (then (call $close) (return (i32.const 1))))
    (i32.store (call $slot (local.get $id)) (local.get $id))
    (i32.store (call $entry (global.get $tail)) (local.get $id))
    (i32.store offset=4 (call $entry (global.get $tail)) (call $now))
    (global.set $tail (i32.add (global.get $tail) (i32.const 1)))
    (i32.const 0))

  (func $speaks (param $id i32)
    (if (i32.eq (i32.load (call $slot (local.get $id))) (local.get $id))
      (then (i32.store (call $slot (local.get $id)) (i32.const 0)))))

  (func (export "proxy_on_downstream_data") (param $id i32) (param i32 i32) (result i32)
    (call $speaks (local.get $id))
    (i32.const 0))

  (func (export "proxy_on_downstream_connection_close") (param $id i32) (param i32)
    (call $speaks (local.get $id))
    (drop (call $count (i32.const -1))))

  ;; Closes those that have been silent for too long: the first of the queue.
  (func (export "proxy_on_tick") (param $root i32)
    (local $now i32) (local $entry i32) (local $id i32)
    (local.set $now (call $now))
    (loop $next
      (if (i32.ne (global.get $head) (global.get $tail))
        (then
          (local.set $entry (call $entry (global.get $head)))
          (if (i32.le_u (i32.sub (local.get $now) (i32.load offset=4 (local.get $entry)))
                (global.get $seconds))
            (then (return)))
          (global.set $head (i32.add (global.get $head) (i32.const 1)))
          (local.set $id (i32.load (local.get $entry)))
          (if (i32.eq (i32.load (call $slot (local.get $id))) (local.get $id))
            (then
              (call $speaks (local.get $id))
              (drop (call $set_context (local.get $id)))
              (call $close)
              (drop (call $set_context (local.get $root)))))
          (br $next))))))
