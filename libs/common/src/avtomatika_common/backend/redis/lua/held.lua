--[[ Shared: out of its holder's hands and back on the board, uncounted. Included after `tasks`. ]]
local function take_back(p, task_id, t)
  redis.call('HDEL', p .. 'held:' .. t.worker, task_id)
  clear_timer(p, 'c', t.job, task_id)
  clear_timer(p, 'r', t.job, task_id)
  redis.call('XADD', p .. 'out', '*', 'k', 'end_hold', 'w', t.worker, 't', task_id, 'o', t.offer)
  return_to_board(p, task_id, t)
end
