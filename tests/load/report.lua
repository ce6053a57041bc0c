-- For the scripts of wrk: prints what was measured as a JSON object on a line of its own, times in microseconds, everything
-- else a number of requests. "times" is the histogram: how many requests took how long. `statuses` is how many answers had
-- which status, if they were counted.
return function(summary, latency, statuses)
  local times = {}
  for i = 1, #latency do
    table.insert(times, string.format("[%d, %d]", latency(i)))
  end
  local counted = {}
  for status, n in pairs(statuses) do
    table.insert(counted, string.format('"%d": %d', status, n))
  end
  local errors = summary.errors
  print(string.format(
    '{"requests": %d, "duration": %d, "times": [%s], "refused": %d, "broken": %d, "statuses": {%s}}',
    summary.requests, summary.duration, table.concat(times, ", "), errors.status,
    errors.connect + errors.read + errors.write + errors.timeout, table.concat(counted, ", ")))
end
