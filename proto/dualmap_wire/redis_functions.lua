-- The functions that run inside Redis 7+ or Valkey 8+: each is one atomic step on a pool's shared state.
-- KEYS[1] is always the pool's key prefix, dm:{pool}: -- one hash tag, so one shard holds all that they touch.
-- The estimate and the policies repeat dualmap/ttft.py and dualmap/choose.py; tests/wire/test_route_parity.py
-- holds the two equal on random states. Charges are integer microseconds: they return to exactly zero.
-- @SUFFIX@ is the hash of this file, so that two releases of DualMap can share one Redis.

-- redis.call exists only while a function runs, not while the library loads.
local function call(...) return redis.call(...) end

local DECAY = 0.5 ^ (1.0 / 400.0)
local SPLIT_SHARE = 0.5
local MIN_SPLIT_COUNT = 16.0
local ROTATE_EVERY = 2048
local MAX_SPLITS = 1024
local MAX_OUTPOSTS = 4096
local STALE_US = 5000000

local function now_us()
  local t = call('TIME')
  return tonumber(t[1]) * 1000000 + tonumber(t[2])
end

local function hash_at(raw, i)
  return string.sub(raw, i * 8 - 7, i * 8)
end

-- Prefix counts ------------------------------------------------------------------------------------------

local function read_count(prefix, chunk, seen)
  local packed = call('HGET', prefix .. 'keys:current', chunk) or call('HGET', prefix .. 'keys:older', chunk)
  if not packed then return 0.0 end
  local count, at = string.match(packed, '^(%S+) (%S+)$')
  return tonumber(count) * DECAY ^ (seen - tonumber(at))
end

local function threshold_of(total, num_instances)
  return math.max(MIN_SPLIT_COUNT, SPLIT_SHARE * total / math.max(num_instances, 1))
end

local function rotate(prefix, seen, threshold, version)
  for _, chunk in ipairs(call('SMEMBERS', prefix .. 'keys:splits')) do
    if read_count(prefix, chunk, seen) < threshold / 2 then
      call('SREM', prefix .. 'keys:splits', chunk)
      version = version + 1
    end
  end
  call('DEL', prefix .. 'keys:older')
  if call('EXISTS', prefix .. 'keys:current') == 1 then
    call('RENAME', prefix .. 'keys:current', prefix .. 'keys:older')
  end
  return version
end

-- Counts a request along its key of `depth` chunks; mirrors PrefixCounts.observe, but that versions follow the
-- clock: after a flush no version comes again that a router knows with other splits.
local function observe(prefix, hashes, depth, num_instances, state, now)
  local seen, total, version = state.seen + 1, state.total * DECAY + 1.0, state.version
  local threshold = threshold_of(total, num_instances)
  if seen % ROTATE_EVERY == 0 then version = rotate(prefix, seen, threshold, version) end
  for i = 1, depth do
    local chunk = hash_at(hashes, i)
    local count = read_count(prefix, chunk, seen) + 1.0
    call('HSET', prefix .. 'keys:current', chunk, string.format('%.17g %d', count, seen))
    if call('SISMEMBER', prefix .. 'keys:splits', chunk) == 0 then
      if count > threshold and call('SCARD', prefix .. 'keys:splits') < MAX_SPLITS then
        call('SADD', prefix .. 'keys:splits', chunk)
        version = version + 1
      end
    elseif count < threshold / 2 then
      call('SREM', prefix .. 'keys:splits', chunk)
      version = version + 1
    end
  end
  if version ~= state.version then version = math.max(version, now) end
  call('HSET', prefix .. 'keys', 'seen', seen, 'total', string.format('%.17g', total),
    'version', string.format('%d', version))
end

local function key_state(prefix)
  local got = call('HMGET', prefix .. 'keys', 'seen', 'total', 'version')
  return { seen = tonumber(got[1] or 0), total = tonumber(got[2] or 0), version = tonumber(got[3] or 0) }
end

-- Views and estimates ------------------------------------------------------------------------------------

local function owned_depth(prefix, instance, hashes)
  local key = prefix .. 'own:' .. instance
  local low, high = 0, #hashes / 8
  while low < high do
    local middle = math.floor((low + high + 1) / 2)
    if call('ZSCORE', key, hash_at(hashes, middle)) then low = middle else high = middle - 1 end
  end
  return low
end

-- perf holds {a, b, c, running router, its charge, started_us, cost_us, class, held, reported_us}; the class of
-- the running prefill is 1 if it was booked as feasible, plus twice the microseconds within which it gives way to a
-- feasible request (0 if it does not).
local function read_view(prefix, instance, hashes, now, speed)
  local booked = call('HMGET', prefix .. 'charges', 'f:' .. instance, 'i:' .. instance)
  local view = {
    instance = instance, owned = owned_depth(prefix, instance, hashes), speed = speed, held = false,
    feasible_s = tonumber(booked[1] or 0) / 1000000, infeasible_s = tonumber(booked[2] or 0) / 1000000,
  }
  local packed = call('HGET', prefix .. 'perf', instance)
  if packed then
    local perf = cmsgpack.unpack(packed)
    view.speed = perf
    -- A report from the future was written before the clock was set back.
    if math.abs(now - perf[10]) <= STALE_US then
      view.held = perf[9] == 1
      if perf[5] ~= '' and call('HEXISTS', prefix .. 'charges:' .. perf[4], perf[5]) == 1 then
        view.running = {
          elapsed_s = (now - perf[6]) / 1000000, cost_s = perf[7] / 1000000,
          feasible = perf[8] % 2 == 1, gives_way_s = perf[8] >= 2 and math.floor(perf[8] / 2) / 1000000,
        }
      end
    end
  end
  return view
end

local function estimate(request, view)
  local feasible_s, infeasible_s, blocking_s = view.feasible_s, view.infeasible_s, 0.0
  local running = view.running
  if running then
    local done_s = math.min(math.max(running.elapsed_s, 0.0), running.cost_s)
    local left_s = running.cost_s - done_s
    if running.feasible then
      feasible_s = feasible_s - done_s
    else
      infeasible_s = infeasible_s - done_s
      blocking_s = left_s
    end
    if running.gives_way_s then
      if running.feasible then
        left_s = math.min(left_s, math.max(feasible_s, 0.0))
        feasible_s, infeasible_s = feasible_s - left_s, infeasible_s + left_s
      end
      blocking_s = math.min(left_s, running.gives_way_s)
    end
  elseif feasible_s <= 0.0 then
    blocking_s = infeasible_s
  end
  feasible_s, infeasible_s = math.max(feasible_s, 0.0), math.max(infeasible_s, 0.0)
  local cached = math.min(math.floor(view.owned * request.chunk_tokens), request.prompt_tokens - 1)
  cached = math.max(cached, 0)
  local uncached = math.max(request.prompt_tokens - cached, 1)
  local attended = uncached * (cached + uncached / 2)
  local own_s = view.speed[1] + view.speed[2] * uncached + view.speed[3] * attended
  local wait_s = feasible_s + blocking_s
  local feasible = wait_s + own_s <= request.slo_s and not view.held
  if not feasible then wait_s = feasible_s + infeasible_s end
  local held_s = view.held and request.slo_s or 0.0
  return {
    instance = view.instance, owned = view.owned, feasible = feasible, late = feasible and 0 or 1, own_s = own_s,
    wait_s = wait_s + held_s, ttft_s = wait_s + held_s + own_s,
    score = wait_s + held_s + (1.0 + request.lambda_own) * own_s,
    load_s = feasible_s + infeasible_s + held_s,
  }
end

-- Policies -----------------------------------------------------------------------------------------------

-- A policy returns the chosen estimate, the backup's (nil for none) and the reason.

-- The first estimate with the smallest key (and, among equals, the smallest second key).
local function smallest(list, key, second)
  local best = list[1]
  for i = 2, #list do
    local e = list[i]
    if e[key] < best[key] or (second and e[key] == best[key] and e[second] < best[second]) then best = e end
  end
  return best
end

-- A decision for a candidate; the best other one backs it up.
local function near(chosen, scored)
  if #scored == 1 then return chosen, nil, 'only' end
  local rest = {}
  for _, e in ipairs(scored) do
    if e ~= chosen then rest[#rest + 1] = e end
  end
  local other = smallest(rest, 'late', 'score')
  return chosen, other, chosen.owned > other.owned and 'affinity' or 'load'
end

local function other_of(scored, chosen)
  for _, e in ipairs(scored) do
    if e ~= chosen then return e end
  end
end

local policies = {}

policies['dualmap'] = function(request, scored, others, outpost)
  local candidates = { unpack(scored) }
  candidates[#candidates + 1] = outpost
  local best = smallest(candidates, 'late', 'score')
  if smallest(candidates, 'ttft_s').ttft_s > request.escape_at * request.slo_s then
    local pool = others()
    if #pool > 0 then
      local winner = smallest(pool, 'late', 'score')
      local gains = best.score - winner.score > request.escape_margin * request.slo_s
      if winner.late < best.late or (winner.late == best.late and gains) then
        return winner, best, 'escape'
      end
    end
  end
  if best == outpost then return best, smallest(scored, 'late', 'score'), 'outpost' end
  return near(best, candidates)
end

policies['paper'] = function(request, scored)
  for _, e in ipairs(scored) do e.unowned = -e.owned end
  local affine = smallest(scored, 'unowned', 'load_s')
  if affine.ttft_s > request.paper_factor * request.slo_s then affine = smallest(scored, 'ttft_s') end
  return near(affine, scored)
end

local function over_pool(request, scored, others, key, second)
  local all = { unpack(scored) }
  for _, e in ipairs(others()) do all[#all + 1] = e end
  for _, e in ipairs(all) do e.unowned = -e.owned end
  local best = smallest(all, key, second)
  return best, other_of(scored, best), 'policy'
end

policies['least-loaded'] = function(request, scored, others)
  return over_pool(request, scored, others, 'load_s')
end

policies['cache-affinity'] = function(request, scored, others)
  return over_pool(request, scored, others, 'unowned', 'load_s')
end

-- The pool comes sorted; sorting here would follow the server's locale.
policies['round-robin'] = function(request, scored, others)
  local all, name = { unpack(scored) }, request.names[request.turn % #request.names + 1]
  for _, e in ipairs(others()) do all[#all + 1] = e end
  for _, e in ipairs(all) do
    if e.instance == name then return e, other_of(scored, e), 'policy' end
  end
end

-- The rest of the pool in the key's own order: rotated, without the pair.
local function others_of(names, start, pair)
  local rest = {}
  for i = 0, #names - 1 do
    local name = names[(start + i) % #names + 1]
    if name ~= pair[1] and name ~= pair[2] then rest[#rest + 1] = name end
  end
  return rest
end

-- The best of those that keep the wait within a bound, or nil.
local function best_within(list, max_wait_s)
  local within = {}
  for _, e in ipairs(list) do
    if e.wait_s <= max_wait_s then within[#within + 1] = e end
  end
  return smallest(within, 'late', 'score')
end

-- Outposts -----------------------------------------------------------------------------------------------

-- Where a prefix key went outside its pair, or nil; mirrors dualmap/outposts.py.
local function read_outpost(prefix, key, names, pair)
  local name = call('HGET', prefix .. 'outposts', key) or call('HGET', prefix .. 'outposts:older', key)
  if not name or name == pair[1] or name == pair[2] then return nil end
  for _, usable in ipairs(names) do
    if usable == name then return name end
  end
end

local function write_outpost(prefix, key, instance)
  local outposts = prefix .. 'outposts'
  if call('HEXISTS', outposts, key) == 0 and call('HLEN', outposts) >= MAX_OUTPOSTS then
    call('RENAME', outposts, prefix .. 'outposts:older')
  end
  call('HSET', outposts, key, instance)
end

-- Charges ------------------------------------------------------------------------------------------------

-- The id of a named tenant's charge ends in its name.
local function tenant_of(charge) return string.match(charge, '@(.+)$') end

-- tenants:<instance> holds the microseconds booked there by named tenant.
local function count_tenant(prefix, charge, instance, us)
  local tenant = tenant_of(charge)
  if not tenant then return end
  local key = prefix .. 'tenants:' .. instance
  if call('HINCRBY', key, tenant, us) == 0 then call('HDEL', key, tenant) end
end

-- The best of those where tenants' turns keep the wait within a bound, or nil: until a request and what its tenant
-- has booked before it are served, each other tenant is served no more than that.
local function best_in_turn(prefix, request, list, tenant, max_wait_s)
  local within = {}
  for _, e in ipairs(list) do
    local flat, ours, wait_s = call('HGETALL', prefix .. 'tenants:' .. e.instance), 0.0, 0.0
    for i = 1, #flat, 2 do
      if flat[i] == tenant then ours = tonumber(flat[i + 1]) / 1000000 end
    end
    for i = 1, #flat, 2 do
      if flat[i] ~= tenant then wait_s = wait_s + math.min(tonumber(flat[i + 1]) / 1000000, ours + e.own_s) end
    end
    wait_s = wait_s + ours
    if wait_s < e.wait_s and wait_s <= max_wait_s then
      e.score = e.score - e.wait_s + wait_s
      e.wait_s, e.ttft_s, e.feasible = wait_s, wait_s + e.own_s, wait_s + e.own_s <= request.slo_s
      e.late = e.feasible and 0 or 1
      within[#within + 1] = e
    end
  end
  return smallest(within, 'late', 'score')
end

local function release_one(prefix, router_key, charge)
  local booked = call('HGET', router_key, charge)
  if not booked then return 0 end
  call('HDEL', router_key, charge)
  local class, us, instance = string.match(booked, '^(%a) (%d+) (.+)$')
  local field = class .. ':' .. instance
  if call('HINCRBY', prefix .. 'charges', field, -tonumber(us)) == 0 then
    call('HDEL', prefix .. 'charges', field)
  end
  count_tenant(prefix, charge, instance, -tonumber(us))
  return 1
end

-- Booking a charge again replaces it: a repeated call must not leave seconds that nobody releases.
local function book_one(prefix, router, charge, class, us, instance)
  local router_key = prefix .. 'charges:' .. router
  release_one(prefix, router_key, charge)
  call('HINCRBY', prefix .. 'charges', class .. ':' .. instance, us)
  call('HSET', router_key, charge, class .. ' ' .. us .. ' ' .. instance)
  count_tenant(prefix, charge, instance, us)
  -- Whoever holds a charge can be reaped, even if it was reaped or the store was flushed since its last poll.
  if call('HLEN', router_key) == 1 then call('SADD', prefix .. 'routers', router) end
end

-- Books what was decided without `route`: ARGV = router, then per charge its id, class, microseconds, instance.
local function book(keys, args)
  for i = 2, #args, 4 do book_one(keys[1], args[1], args[i], args[i + 1], args[i + 2], args[i + 3]) end
  return (#args - 1) / 4
end

-- Releases charges, each at most once: ARGV = router, charge...
local function release(keys, args)
  local prefix, released = keys[1], 0
  local router_key = prefix .. 'charges:' .. args[1]
  for i = 2, #args do released = released + release_one(prefix, router_key, args[i]) end
  return released
end

-- Route --------------------------------------------------------------------------------------------------

-- Decides and books. ARGV[1] is msgpack, in the order of redis_functions.RouteCall; ARGV[2] the chunk hashes,
-- 8 bytes each; ARGV[3] the pool's instance names, joined by newlines.
-- Returns {'ok', instance, backup, reason, feasible, owned chunks, the backup's owned chunks, wait, own and TTFT
-- in microseconds, {candidate, its owned chunks, wait, own}..., now_us}
-- or {'stale', version, split...} or {'overload', wait in microseconds}.
local function route(keys, args)
  local prefix, hashes = keys[1], args[2]
  local a = cmsgpack.unpack(args[1])
  local request = {
    prompt_tokens = a[4], chunk_tokens = a[5], slo_s = a[6], lambda_own = a[7], escape_at = a[8],
    escape_margin = a[9], paper_factor = a[10], pair = a[14], names = {},
  }
  for name in string.gmatch(args[3], '[^\n]+') do request.names[#request.names + 1] = name end
  local router, charge, policy, key_depth = a[1], a[2], a[3], a[12]
  local count, books, start, max_wait_s, speed = a[15], a[16], a[13], a[17], a[18]

  local state = key_state(prefix)
  if count and state.version ~= a[11] then
    return { 'stale', state.version, unpack(call('SMEMBERS', prefix .. 'keys:splits')) }
  end
  local now = now_us()
  local function estimates(names)
    local list = {}
    for i, name in ipairs(names) do
      list[i] = estimate(request, read_view(prefix, name, hashes, now, speed))
    end
    return list
  end
  if policy == 'round-robin' then
    request.turn = tonumber(call('GET', prefix .. 'turn') or 0)
    if books then call('INCR', prefix .. 'turn') end
  end
  local key = key_depth > 0 and hash_at(hashes, key_depth)
  local outpost = policy == 'dualmap' and key and read_outpost(prefix, key, request.names, request.pair)
  local pair, third = estimates(request.pair), outpost and estimates({ outpost })[1] or nil
  local rest
  local function others()
    rest = rest or estimates(others_of(request.names, start, request.pair))
    return rest
  end
  local chosen, backup, reason = policies[policy](request, pair, others, third)
  local candidates = { unpack(pair) }
  candidates[#candidates + 1] = third
  if count then
    observe(prefix, hashes, key_depth, #request.names, state, now)
  end
  if max_wait_s > 0 and chosen.wait_s > max_wait_s then
    local everyone = { unpack(pair) }
    for _, e in ipairs(others()) do everyone[#everyone + 1] = e end
    local best = best_within(everyone, max_wait_s)
    -- What another tenant has sent in excess is in nobody's way who takes turns with it.
    -- Its estimates are made anew: they are changed there, and these tell what was weighed.
    local tenant = not best and tenant_of(charge)
    if tenant then best = best_in_turn(prefix, request, estimates(request.pair), tenant, max_wait_s) end
    if not best then return { 'overload', math.floor(chosen.wait_s * 1000000) } end
    chosen, backup, reason = best, chosen, 'escape'
  end
  local ttft_us = math.floor(chosen.ttft_s * 1000000)
  local wait_us = math.floor(chosen.wait_s * 1000000)
  local own_us = math.floor(chosen.own_s * 1000000)
  if books then
    book_one(prefix, router, charge, chosen.feasible and 'f' or 'i', own_us, chosen.instance)
    local home = a[19] and (chosen.instance == request.pair[1] or chosen.instance == request.pair[2])
    if key and policy == 'dualmap' and not home then write_outpost(prefix, key, chosen.instance) end
  end
  local weighed = {}
  for i, e in ipairs(candidates) do
    weighed[i] = { e.instance, e.owned, math.floor(e.wait_s * 1000000), math.floor(e.own_s * 1000000) }
  end
  return {
    'ok', chosen.instance, backup and backup.instance or '', reason, chosen.feasible and 1 or 0, chosen.owned,
    backup and backup.owned or 0, wait_us, own_us, ttft_us, weighed, now,
  }
end

-- What a decision would see of every instance: {now_us, {name, f_us, i_us, owned chunks, perf}...}.
local function views(keys, args)
  local prefix, result = keys[1], { now_us() }
  for name in string.gmatch(args[2], '[^\n]+') do
    local booked = call('HMGET', prefix .. 'charges', 'f:' .. name, 'i:' .. name)
    local perf = call('HGET', prefix .. 'perf', name) or ''
    if perf ~= '' then
      local p = cmsgpack.unpack(perf)
      if p[5] ~= '' and call('HEXISTS', prefix .. 'charges:' .. p[4], p[5]) == 0 then
        p[5] = ''
        perf = cmsgpack.pack(p)
      end
    end
    result[#result + 1] = {
      name, tonumber(booked[1] or 0), tonumber(booked[2] or 0), owned_depth(prefix, name, args[1]), perf,
    }
  end
  return result
end

-- Ownership ----------------------------------------------------------------------------------------------

-- Marks chunks as held by an instance: ARGV = instance, generation, most chunks it can hold, hashes.
-- Earlier chunks get the later time, so that trimming takes a prefix from its tail, as engines do.
local function own_add(keys, args)
  local prefix, instance, hashes = keys[1], args[1], args[4]
  if call('HGET', prefix .. 'generations', instance) ~= args[2] then return 0 end
  local key, now, most, n = prefix .. 'own:' .. instance, now_us(), tonumber(args[3]), #hashes / 8
  for first = 1, n, 500 do
    local batch = {}
    for i = first, math.min(first + 499, n) do
      batch[#batch + 1] = now - i
      batch[#batch + 1] = hash_at(hashes, i)
    end
    call('ZADD', key, unpack(batch))
  end
  local over = call('ZCARD', key) - most
  if over > 0 then call('ZREMRANGEBYRANK', key, 0, over - 1) end
  return n
end

-- What an instance holds, as its worker knows it from the engine's KV events: ARGV = instance, generation,
-- 'all' or 'some', microseconds of grace, the chunks held, the chunks gone. With 'all', whatever is not held is gone.
-- Spares what was written down within the grace: its request may still be on its way to the worker.
-- Returns {chunks written down, chunk spared...}, or {-1} for another generation.
local function own_sync(keys, args)
  local prefix, instance, held, gone, spared = keys[1], args[1], args[5], {}, {}
  if call('HGET', prefix .. 'generations', instance) ~= args[2] then return { -1 } end
  local key, now = prefix .. 'own:' .. instance, now_us()
  local young = now - tonumber(args[4])
  local holds = {}
  for i = 1, #held / 8 do holds[hash_at(held, i)] = true end
  if args[3] == 'all' then
    for _, chunk in ipairs(call('ZRANGE', key, 0, -1)) do
      if not holds[chunk] then gone[#gone + 1] = chunk end
    end
  else
    for i = 1, #args[6] / 8 do gone[#gone + 1] = hash_at(args[6], i) end
  end
  for _, chunk in ipairs(gone) do
    local at = tonumber(call('ZSCORE', key, chunk) or 0)
    if at > young then
      if #spared < 1000 then spared[#spared + 1] = chunk end
    elseif at > 0 then
      call('ZREM', key, chunk)
    end
  end
  for first = 1, #held / 8, 500 do
    local batch = {}
    for i = first, math.min(first + 499, #held / 8) do
      batch[#batch + 1] = young
      batch[#batch + 1] = hash_at(held, i)
    end
    call('ZADD', key, 'NX', unpack(batch))
  end
  return { call('ZCARD', key), unpack(spared) }
end

-- Registry -----------------------------------------------------------------------------------------------

-- A worker's heartbeat: ARGV = instance, registration, generation, lease_ms. A new generation owns nothing.
-- Returns the version, or -1 while a later generation of the same name holds its lease: two processes that
-- share a name would otherwise replace each other with every heartbeat.
local function register(keys, args)
  local prefix, instance = keys[1], args[1]
  local holder = call('GET', prefix .. 'lease:instance:' .. instance)
  if holder and (tonumber(holder) or 0) > tonumber(args[3]) then return -1 end
  if call('HGET', prefix .. 'generations', instance) ~= args[3] then
    call('HSET', prefix .. 'generations', instance, args[3])
    call('DEL', prefix .. 'own:' .. instance)
    call('HDEL', prefix .. 'perf', instance)
  end
  if call('HGET', prefix .. 'instances', instance) ~= args[2] or not holder then
    call('HSET', prefix .. 'instances', instance, args[2])
    call('INCR', prefix .. 'version')
  end
  call('SET', prefix .. 'lease:instance:' .. instance, args[3], 'PX', args[4])
  return tonumber(call('GET', prefix .. 'version') or 0)
end

local function forget_instance(prefix, instance)
  call('HDEL', prefix .. 'instances', instance)
  call('HDEL', prefix .. 'generations', instance)
  call('HDEL', prefix .. 'perf', instance)
  call('DEL', prefix .. 'own:' .. instance, prefix .. 'lease:instance:' .. instance)
  call('INCR', prefix .. 'version')
end

-- A worker leaves: ARGV = instance, generation.
local function deregister(keys, args)
  if call('HGET', keys[1] .. 'generations', args[1]) ~= args[2] then return 0 end
  forget_instance(keys[1], args[1])
  return 1
end

-- {version, now_us, {instance, registration, generation, alive, perf}...}; a router's poll also renews its
-- lease: ARGV = router or '', lease_ms.
local function members(keys, args)
  local prefix = keys[1]
  if args[1] ~= '' then
    call('SADD', prefix .. 'routers', args[1])
    call('SET', prefix .. 'lease:router:' .. args[1], '1', 'PX', args[2])
  end
  local result = { tonumber(call('GET', prefix .. 'version') or 0), now_us() }
  local flat = call('HGETALL', prefix .. 'instances')
  for i = 1, #flat, 2 do
    local name = flat[i]
    result[#result + 1] = {
      name, flat[i + 1], call('HGET', prefix .. 'generations', name) or '',
      call('EXISTS', prefix .. 'lease:instance:' .. name), call('HGET', prefix .. 'perf', name) or '',
    }
  end
  return result
end

-- Tenants' limits ----------------------------------------------------------------------------------------

-- inside:<tenant> counts a tenant's requests by router. Who has no lease has none, and what nobody writes for
-- INSIDE_MS is forgotten; routers say the whole truth now and then, since calls may be lost.
local INSIDE_MS = 10000

local function write_inside(prefix, router, tenant, count)
  local key = prefix .. 'inside:' .. tenant
  if count > 0 then
    call('HSET', key, router, count)
    call('PEXPIRE', key, INSIDE_MS)
  else
    call('HDEL', key, router)
  end
end

-- (requests of a tenant in this router, in the others)
local function read_inside(prefix, router, tenant)
  local key, own, others = prefix .. 'inside:' .. tenant, 0, 0
  local flat = call('HGETALL', key)
  for i = 1, #flat, 2 do
    if flat[i] == router then
      own = tonumber(flat[i + 1])
    elseif call('EXISTS', prefix .. 'lease:router:' .. flat[i]) == 1 then
      others = others + tonumber(flat[i + 1])
    else
      call('HDEL', key, flat[i])
    end
  end
  return own, others
end

-- Whether a tenant's limits let one more request in: ARGV = router, tenant, requests per second, burst, concurrency
-- (0 for no limit). The rate is dualmap/limits.py.
-- Returns {'ok', 'rate' or 'concurrency', microseconds to wait, requests left in the bucket, microseconds until it is
-- full, routers, now_us}.
local function enter(keys, args)
  local prefix, router, tenant = keys[1], args[1], args[2]
  local rate, burst, concurrency = tonumber(args[3]), tonumber(args[4]), tonumber(args[5])
  local now, routers, own = now_us(), call('SCARD', prefix .. 'routers'), 0
  if concurrency > 0 then
    local others
    own, others = read_inside(prefix, router, tenant)
    if own + others >= concurrency then return { 'concurrency', 0, 0, 0, routers, now } end
  end
  local left, full_us = 0, 0
  if rate > 0 then
    local key, interval = prefix .. 'rate:' .. tenant, 1000000 / rate
    -- No bucket is more than empty: one that seems to be was written before the clock was set back.
    local full_at = math.min(math.max(tonumber(call('GET', key) or 0), now), now + burst * interval)
    local after = full_at + interval
    local wait = after - burst * interval - now
    if wait > interval * 5e-7 then
      return { 'rate', math.ceil(wait), 0, math.ceil(after - interval - now), routers, now }
    end
    -- A bucket that is full is no different from one that was never there.
    call('SET', key, string.format('%.17g', after), 'PX', math.max(1, math.ceil((after - now) / 1000)))
    left, full_us = math.floor((now + burst * interval - after) / interval + 1e-6), math.ceil(after - now)
  end
  if concurrency > 0 then write_inside(prefix, router, tenant, own + 1) end
  return { 'ok', 0, left, full_us, routers, now }
end

-- A request of a tenant is over: ARGV = router, tenant.
local function leave(keys, args)
  local own = tonumber(call('HGET', keys[1] .. 'inside:' .. args[2], args[1]) or 0)
  write_inside(keys[1], args[1], args[2], own - 1)
  return own
end

-- How many requests of some tenants a router has: ARGV = router, then per tenant its name and their number.
local function inside(keys, args)
  for i = 2, #args, 2 do write_inside(keys[1], args[1], args[i], tonumber(args[i + 1])) end
  return (#args - 1) / 2
end

-- Rebalancer ---------------------------------------------------------------------------------------------

-- Takes or renews the lead: ARGV = who, lease_ms. Returns the fencing token, or 0 while another leads.
-- Tokens follow the clock, so that they also grow across a flush: workers refuse a smaller one for ever.
local function lead(keys, args)
  local prefix = keys[1]
  local holder = call('GET', prefix .. 'leader')
  if holder and holder ~= args[1] then return 0 end
  local fence = tonumber(call('GET', prefix .. 'fence') or 0)
  if not holder or fence == 0 then
    fence = math.max(fence + 1, now_us())
    call('SET', prefix .. 'fence', string.format('%d', fence))
  end
  call('SET', prefix .. 'leader', args[1], 'PX', args[2])
  return fence
end

-- Gives the lead up: ARGV = who.
local function resign(keys, args)
  if call('GET', keys[1] .. 'leader') ~= args[1] then return 0 end
  return call('DEL', keys[1] .. 'leader')
end

local function fenced_off(prefix, fence)
  return tonumber(fence) == 0 or tonumber(call('GET', prefix .. 'fence') or 0) ~= tonumber(fence)
end

-- Folds telemetry into perf: ARGV = fence, then per instance its name, generation and msgpack
-- {a, b, c, running router, its charge, elapsed_us, cost_us, class, held}. Returns -1 when deposed.
local function fold(keys, args)
  local prefix, now, folded = keys[1], now_us(), 0
  if fenced_off(prefix, args[1]) then return -1 end
  for i = 2, #args, 3 do
    if call('HGET', prefix .. 'generations', args[i]) == args[i + 1] then
      local perf = cmsgpack.unpack(args[i + 2])
      perf[6] = now - perf[6]
      perf[10] = now
      call('HSET', prefix .. 'perf', args[i], cmsgpack.pack(perf))
      folded = folded + 1
    end
  end
  return folded
end

-- Releases the charges of routers whose lease is gone and forgets instances whose lease is gone:
-- ARGV = fence. Returns {routers reaped, charges released, instances forgotten} or {-1, 0, 0} when deposed.
local function reap(keys, args)
  local prefix, routers, charges, instances = keys[1], 0, 0, 0
  if fenced_off(prefix, args[1]) then return { -1, 0, 0 } end
  for _, router in ipairs(call('SMEMBERS', prefix .. 'routers')) do
    if call('EXISTS', prefix .. 'lease:router:' .. router) == 0 then
      local router_key = prefix .. 'charges:' .. router
      for _, charge in ipairs(call('HKEYS', router_key)) do
        charges = charges + release_one(prefix, router_key, charge)
      end
      call('SREM', prefix .. 'routers', router)
      routers = routers + 1
    end
  end
  for _, instance in ipairs(call('HKEYS', prefix .. 'instances')) do
    if call('EXISTS', prefix .. 'lease:instance:' .. instance) == 0 then
      forget_instance(prefix, instance)
      instances = instances + 1
    end
  end
  return { routers, charges, instances }
end

-- One by one: the load phase has no standard library to loop with.
redis.register_function('route_@SUFFIX@', route)
redis.register_function('book_@SUFFIX@', book)
redis.register_function('release_@SUFFIX@', release)
redis.register_function('own_add_@SUFFIX@', own_add)
redis.register_function('own_sync_@SUFFIX@', own_sync)
redis.register_function('register_@SUFFIX@', register)
redis.register_function('deregister_@SUFFIX@', deregister)
redis.register_function('members_@SUFFIX@', members)
redis.register_function('enter_@SUFFIX@', enter)
redis.register_function('leave_@SUFFIX@', leave)
redis.register_function('inside_@SUFFIX@', inside)
redis.register_function('lead_@SUFFIX@', lead)
redis.register_function('resign_@SUFFIX@', resign)
redis.register_function('fold_@SUFFIX@', fold)
redis.register_function('reap_@SUFFIX@', reap)
redis.register_function({ function_name = 'views_@SUFFIX@', callback = views, flags = { 'no-writes' } })
