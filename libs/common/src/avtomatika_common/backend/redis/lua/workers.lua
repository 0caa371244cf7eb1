--[[
  Shared by the scripts that move workers. Included where a script says `--@include workers`.

  Layout of the workers' slot (`w` is its key prefix):
    w:<id>          hash   inc, nonce of the call that registered it, max tasks at once ('' = no limit),
                           draining ('1' or '0'), stamp counts changes of its places; d:<key> one per
                           key of its document, packed; t:<type> when it last got such a task (ms)
    exp             zset   worker -> end of its registration (ms)
    cred:<id>       zset   `<poll>|<room>|<gateway>` -> until (ms)
    hold:<id>       zset   task it holds or was promised -> until (ms; +inf once the lease is known here)
    offer:<id>      hash   task of a hold -> its offer number
    cancel:<id>     zset   tasks it should stop -> since (ms)
    relayed:<part>  string id of the last entry of a partition's `out` that took effect here
    inc             int    numbers the registrations of all workers, so that none comes twice
    sock:<id>       string `<connection>|<gateway>`: its socket; for a minute unless renewed
    gone            stream registrations that ended: w=worker, i=incarnation, l=lost ('1' or '0')
    mail:<gateway>  stream k=match: p=poll, w=worker, i=incarnation, u=until (ms),
                           t=msgpack of {task, job, offer}s;
                           k=stop: w=worker, c=connection, t=task, j=job; k=close: w=worker, c=connection
    hint            stream wake-ups: k=worker, v=id, p=`<places>` if nothing else of it changed
                           but t=msgpack of {task type: when it got one (ms)};
                           k=unmatched, v=`<offer>:<task>`
    places                 incarnation, room of its open polls, tasks held or promised, stamp
    alive:<name>    string liveness of an instance
]]
local function now_ms()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

local function hint(w, worker)
  redis.call('XADD', w .. 'hint', 'MAXLEN', '~', '1000', '*', 'k', 'worker', 'v', worker)
end

local function mail(w, gateway, ...)
  local box = w .. 'mail:' .. gateway
  redis.call('XADD', box, 'MAXLEN', '~', '10000', '*', ...)
  redis.call('PEXPIRE', box, '60000')
end

-- A flush deletes key by key: who registers meanwhile may lose half of what it wrote.
local function is_whole(w, worker)
  return redis.call('HEXISTS', w .. 'w:' .. worker, 'inc') == 1
end

-- A registration whose time is over counts for nobody who chooses, but it is there until somebody ends
-- it: after an outage of everybody, whoever is heard of first goes on as before.
local function is_registered(w, worker)
  return redis.call('ZSCORE', w .. 'exp', worker) and is_whole(w, worker)
end

local function is_live(w, worker, now)
  local expiry = redis.call('ZSCORE', w .. 'exp', worker)
  return expiry and tonumber(expiry) > now and is_whole(w, worker)
end

-- Open polls at gateways that are alive, the latest first. `alive` remembers what was looked up.
local function credits(w, worker, now, alive)
  local open = redis.call('ZRANGE', w .. 'cred:' .. worker, '+inf', '(' .. now, 'BYSCORE', 'REV',
    'LIMIT', '0', '512')
  local found = {}
  for _, member in ipairs(open) do
    local poll, room, gateway = string.match(member, '^([^|]*)|([^|]*)|(.*)$')
    if alive[gateway] == nil then
      alive[gateway] = redis.call('EXISTS', w .. 'alive:' .. gateway) == 1
    end
    if alive[gateway] then
      found[#found + 1] = {member = member, poll = poll, room = tonumber(room), gateway = gateway}
    end
  end
  return found
end

local function room_of(open)
  local room = 0
  for _, credit in ipairs(open) do
    room = room + credit.room
  end
  return room
end

-- The places of these workers changed (keys of the table), nothing else of them: one hint for each.
local function hint_places(w, workers, now)
  local alive = {}
  for worker in pairs(workers) do
    local key = w .. 'w:' .. worker
    local incarnation = redis.call('HGET', key, 'inc')
    if incarnation then
      local room = room_of(credits(w, worker, now, alive))
      local held = redis.call('ZCOUNT', w .. 'hold:' .. worker, '(' .. now, '+inf')
      local stamp = redis.call('HINCRBY', key, 'stamp', 1)
      redis.call('XADD', w .. 'hint', 'MAXLEN', '~', '1000', '*', 'k', 'worker', 'v', worker,
        'p', incarnation .. ':' .. room .. ':' .. held .. ':' .. stamp)
    end
  end
end

-- The connection that is the worker's socket, and its gateway, if that is alive.
local function live_socket(w, worker)
  local socket = redis.call('GET', w .. 'sock:' .. worker)
  if socket then
    local connection, gateway = string.match(socket, '^([^|]*)|(.*)$')
    if redis.call('EXISTS', w .. 'alive:' .. gateway) == 1 then
      return connection, gateway
    end
  end
  return nil
end

local function close_socket(w, worker)
  local connection, gateway = live_socket(w, worker)
  if connection then
    mail(w, gateway, 'k', 'close', 'w', worker, 'c', connection)
  end
  redis.call('DEL', w .. 'sock:' .. worker)
end

-- The worker is to stop a task: heartbeats say so until it has, its socket once. 1: by a socket too.
local function stop_task(w, worker, task, job, now)
  local cancel = w .. 'cancel:' .. worker
  local is_new = redis.call('ZADD', cancel, 'NX', now, task) == 1
  redis.call('ZREMRANGEBYRANK', cancel, '0', '-1001')
  local connection, gateway = live_socket(w, worker)
  if connection and is_new then
    mail(w, gateway, 'k', 'stop', 'w', worker, 'c', connection, 't', task, 'j', job)
  end
  return connection and 1 or 0
end

-- Promises that were not kept in time are forgotten.
local function forget_old_holds(w, worker, now)
  local hold = w .. 'hold:' .. worker
  local old = redis.call('ZRANGE', hold, '-inf', now, 'BYSCORE', 'LIMIT', '0', '512')
  for _, task in ipairs(old) do
    redis.call('ZREM', hold, task)
    redis.call('HDEL', w .. 'offer:' .. worker, task)
  end
end

-- The registration is over, whatever came after it; its leases are returned by who reads `gone`.
local function end_registration(w, worker, lost)
  local incarnation = redis.call('HGET', w .. 'w:' .. worker, 'inc')
  if incarnation then
    redis.call('XADD', w .. 'gone', '*', 'w', worker, 'i', incarnation, 'l', lost and '1' or '0')
  end
  redis.call('DEL', w .. 'w:' .. worker, w .. 'cred:' .. worker, w .. 'hold:' .. worker,
    w .. 'offer:' .. worker, w .. 'cancel:' .. worker)
  redis.call('ZREM', w .. 'exp', worker)
  hint(w, worker)
end
