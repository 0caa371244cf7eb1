--[[
  Shared by the scripts that move tasks. Included where a script says `--@include tasks`.

  Layout of one partition (`p` is its key prefix):
    j:<job>         hash   input, data, head, signals; fence run claim tries wait cancel status group
                           owner open; deadline: when its own time is over (ms); sig_sent, sig_taken:
                           how many signals;
                           entries that went to another place: moved, and wait there: deferred
    j:<job>:br      hash   open branches: current task id -> Branch
    j:<job>:st      list   offers of a large fan-out that are not made yet
    j:<job>:res     hash   task id -> BranchResult of the last fan-out
    j:<job>:prog    list   last 100 progress entries
    j:<job>:ev      zset   last 1000 worker events that counted: `<worker>|<event id>`, by time
    j:<job>:sig     zset   nonces of the last calls that sent a signal, by its number
    j:<job>:done    hash   closed tasks: id -> `result|<worker>`, `deadline|`, `lost|` or `closed|`
    t:<task>        hash   job state(board|leased) shape member prio offer payload meta branch
                           result_ms beat_ms dispatch_due reason worker inc leased_at checkpoint missed
    board:<shape>   zset   score -priority, member `<16 digits>:<task>` (first in, first out)
    shapes          hash   non-empty shapes -> msgpack {type, resource_requirements, max_cost, strategy}
    seq             int    numbers the members
    held:<worker>   hash   task -> `<incarnation>:<job>`: tasks leased in this partition
    tm              zset   due (ms) -> `<kind>/<job>/<token>`; kinds: w wait, b branch retry, e deferred
                           entry, d dispatch deadline, c delivery confirmation, r result deadline,
                           o offers of a large fan-out, x its closing, j the job's own deadline;
                           r is earlier where the task has a heartbeat timeout
    out             stream what takes effect in the workers' slot: k=end_hold|stop|keep_hold, w=worker,
                           t=task, o=number of the offer it is about, j=job
    gone:<worker>   string incarnations up to this one were given up; for 60 s
    hint            stream wake-ups: k=timer, v=due time; k=task, v=task type, and the task as it is
                           on the board: m=shape's meta, n=member, j=job, o=offer, r=priority
]]
local function now_ms()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

-- The next fence of a job after `fence` (`<version>:<nonce>`): versions only count up.
local function fence_after(fence, nonce)
  return (tonumber(string.match(fence, '^%d+')) + 1) .. ':' .. nonce
end

local function hint(p, kind, value)
  redis.call('XADD', p .. 'hint', 'MAXLEN', '~', '1000', '*', 'k', kind, 'v', value)
end

-- A task came to the board; who matches need not look for it.
local function hint_task(p, type, meta, member, job_id, offer, priority)
  redis.call('XADD', p .. 'hint', 'MAXLEN', '~', '1000', '*', 'k', 'task', 'v', type, 'm', meta,
    'n', member, 'j', job_id, 'o', offer, 'r', priority)
end

-- A timer; watchers are woken only when it is the first to come.
local function set_timer(p, kind, job_id, token, due)
  local member = kind .. '/' .. job_id .. '/' .. token
  redis.call('ZADD', p .. 'tm', due, member)
  local head = redis.call('ZRANGE', p .. 'tm', '0', '0')
  if head[1] == member then
    hint(p, 'timer', due)
  end
end

local function clear_timer(p, kind, job_id, token)
  redis.call('ZREM', p .. 'tm', kind .. '/' .. job_id .. '/' .. token)
end

-- A new task, on the board, at the end of its priority.
local function offer_task(p, job_id, task_id, o)
  local seq = redis.call('INCR', p .. 'seq')
  local member = string.format('%016d', seq) .. ':' .. task_id
  redis.call('HSET', p .. 't:' .. task_id, 'job', job_id, 'state', 'board', 'shape', o.shape,
    'member', member, 'prio', o.priority, 'offer', '1', 'payload', o.payload, 'meta', o.meta,
    'branch', o.branch, 'result_ms', o.result_ms, 'dispatch_due', o.dispatch_due)
  if o.beat_ms ~= '' then
    redis.call('HSET', p .. 't:' .. task_id, 'beat_ms', o.beat_ms)
  end
  if o.checkpoint ~= '' then
    redis.call('HSET', p .. 't:' .. task_id, 'checkpoint', o.checkpoint)
  end
  redis.call('ZADD', p .. 'board:' .. o.shape, -tonumber(o.priority), member)
  redis.call('HSET', p .. 'shapes', o.shape, o.meta)
  if o.dispatch_due ~= '' then
    set_timer(p, 'd', job_id, task_id, o.dispatch_due)
  end
  hint_task(p, o.type, o.meta, member, job_id, '1', o.priority)
end

local function leave_board(p, shape, member)
  redis.call('ZREM', p .. 'board:' .. shape, member)
  if redis.call('EXISTS', p .. 'board:' .. shape) == 0 then
    redis.call('HDEL', p .. 'shapes', shape)
  end
end

-- Back to the place it had, as the next offer. `t` = {job, shape, member, prio, meta, dispatch_due}.
local function return_to_board(p, task_id, t)
  local offer = redis.call('HINCRBY', p .. 't:' .. task_id, 'offer', '1')
  redis.call('HSET', p .. 't:' .. task_id, 'state', 'board')
  redis.call('HDEL', p .. 't:' .. task_id, 'worker', 'inc', 'leased_at', 'missed')
  redis.call('ZADD', p .. 'board:' .. t.shape, -tonumber(t.prio), t.member)
  redis.call('HSET', p .. 'shapes', t.shape, t.meta)
  if t.dispatch_due ~= '' then
    set_timer(p, 'd', t.job, task_id, t.dispatch_due)
  end
  hint_task(p, cmsgpack.unpack(t.meta)['type'], t.meta, t.member, t.job, offer, t.prio)
end

local function read_task(p, task_id)
  local v = redis.call('HMGET', p .. 't:' .. task_id, 'job', 'state', 'shape', 'member', 'prio',
    'offer', 'meta', 'branch', 'result_ms', 'dispatch_due', 'worker', 'inc', 'leased_at',
    'checkpoint', 'beat_ms')
  if not v[1] then
    return nil
  end
  return {job = v[1], state = v[2], shape = v[3], member = v[4], prio = v[5], offer = v[6],
    meta = v[7], branch = v[8], result_ms = v[9], dispatch_due = v[10], worker = v[11], inc = v[12],
    leased_at = v[13], checkpoint = v[14], beat_ms = v[15]}
end

-- When the holder of a task is late (ms), if nothing is heard of it after `heard_at` (ms).
local function late_at(t, heard_at)
  local due = tonumber(t.leased_at) + tonumber(t.result_ms)
  return t.beat_ms and math.min(due, tonumber(heard_at) + tonumber(t.beat_ms)) or due
end

-- The worker has the leased task: its one timer is the result deadline, or that of its heartbeat,
-- counted from the hand-out.
local function confirm(p, task_id, t)
  redis.call('HDEL', p .. 't:' .. task_id, 'missed')
  if redis.call('ZREM', p .. 'tm', 'c/' .. t.job .. '/' .. task_id) == 1 then
    set_timer(p, 'r', t.job, task_id, late_at(t, t.leased_at))
  end
end

-- The task's gate closes, once and for good: off the board or out of its holder's hands, no timer left.
-- `why` goes to the job's list of closed tasks; `stop`: its holder is told to stop it.
local function close_task(p, task_id, t, why, stop)
  if t.state == 'board' then
    leave_board(p, t.shape, t.member)
  else
    redis.call('HDEL', p .. 'held:' .. t.worker, task_id)
    redis.call('XADD', p .. 'out', '*', 'k', stop and 'stop' or 'end_hold', 'w', t.worker, 't', task_id,
      'o', t.offer, 'j', t.job)
  end
  local timer = '/' .. t.job .. '/' .. task_id
  redis.call('ZREM', p .. 'tm', 'd' .. timer, 'c' .. timer, 'r' .. timer)
  redis.call('HSET', p .. 'j:' .. t.job .. ':done', task_id, why)
  redis.call('DEL', p .. 't:' .. task_id)
end

-- An event for a job, in the lane of started jobs. `leased_at` (ms), `checkpoint`: of the task it is
-- about.
local function append_event(p, group, job_id, event, branch, leased_at, checkpoint)
  local entry = {p .. 'in:' .. group, '*', 'j', job_id, 'e', event}
  if branch == '1' then
    entry[#entry + 1] = 'b'
    entry[#entry + 1] = '1'
  end
  if leased_at then
    entry[#entry + 1] = 'l'
    entry[#entry + 1] = leased_at
  end
  if checkpoint then
    entry[#entry + 1] = 'c'
    entry[#entry + 1] = checkpoint
  end
  return redis.call('XADD', unpack(entry))
end
