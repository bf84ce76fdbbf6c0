-- Takes rows from every policy if all of them have what is needed, else from none. All replicas count by the clock of this
-- server, and what is kept of a policy is when the whole quota is there again, after which the key is worth nothing and expires.
-- KEYS: one for each policy. ARGV, six for each: the quota's time (microseconds), its rows, the rows needed, the rows wanted;
-- and what the replica knows: the time it was told last, in case that this server has lost it, and the rows that it has let
-- through by itself since.
-- Answers three for each: that time, how far ahead it is, and the rows taken; -1 if there are too few.
local time = redis.call('TIME')
-- Counted from 2023: a double then has room for fractions of a microsecond.
local now = (time[1] - 1700000000) * 1000000 + time[2]

local policies, admits = {}, true
for at, key in ipairs(KEYS) do
  -- What somebody else has put there is worth nothing, and is overwritten.
  local kept = redis.pcall('GET', key)
  if type(kept) == 'table' and kept.err and not string.find(kept.err, 'WRONGTYPE', 1, true) then
    return kept
  end
  kept = type(kept) == 'string' and tonumber(kept)
  local first = 6 * (at - 1)
  local function argument(number) return tonumber(ARGV[first + number]) end
  local policy = {window = argument(1), rows = argument(2), need = argument(3), want = argument(4)}
  policy.before = kept and kept > 0 and kept < 1e15 and kept or now
  policy.time = math.max(policy.before, argument(5), now) + argument(6) * policy.window / policy.rows
  -- A clock that was set back must not keep anybody waiting for longer than the quota's time.
  policy.time = math.min(policy.time, now + policy.window)
  -- The thousandth makes up for what rounding loses.
  policy.free = math.floor((now + policy.window - policy.time) * policy.rows / policy.window + 0.001)
  admits = admits and policy.free >= policy.need
  policies[at] = policy
end

local answer = {}
for at, policy in ipairs(policies) do
  local taken = 0
  if admits then
    taken = math.min(policy.free, policy.want)
    policy.time = policy.time + taken * policy.window / policy.rows
  elseif policy.free < policy.need then
    taken = -1
  end
  if policy.time > now and policy.time ~= policy.before then
    local lasts = math.ceil((policy.time - now) / 1000) + 1
    redis.call('SET', KEYS[at], string.format('%.3f', policy.time), 'PX', lasts)
  end
  table.insert(answer, string.format('%.3f', policy.time))
  table.insert(answer, string.format('%.3f', policy.time - now))
  table.insert(answer, tostring(taken))
end
return answer
