-- For wrk: sends each prepared request once, then the first one again until it is interrupted.
--
--   wrk … -s replay.lua URL -- FILE THREADS
--
-- FILE has one request per line, with `\n` written as the two characters of an escape; each thread has lines of its own.
-- The last line of the output is that of report.lua.

local report = dofile(debug.getinfo(1, "S").source:match("^@(.*/)") .. "report.lua")
local threads = {}

function setup(thread)
  thread:set("number", #threads)
  table.insert(threads, thread)
end

local requests, next_one = {}, 0

function init(args)
  local file, of = args[1], tonumber(args[2])
  local line_number = 0
  for line in io.lines(file) do
    if line_number % of == number then
      requests[#requests + 1] = line:gsub("\\r", "\r"):gsub("\\n", "\n")
    end
    line_number = line_number + 1
  end
end

function request()
  next_one = next_one + 1
  return requests[next_one] or requests[1]
end

function done(summary, latency)
  report(summary, latency, {})
end
