-- Callers for wrk: each thread has one connection and one key of its own. The arguments are the file of the keys, what
-- the callers do, and for likes optionally the number of threads. A like is the same request over and over; with the
-- number of threads, each thread takes another key for each like, and together they use all. Each post has its own text.
local count = 0

function setup(thread)
  thread:set("number", count)
  count = count + 1
end

function init(args)
  local keys = {}
  for line in io.lines(args[1]) do
    keys[#keys + 1] = line
  end
  wrk.method = "POST"
  wrk.body = '{"tweet_id":"1346889436626259968"}'
  wrk.headers["Authorization"] = "Bearer " .. keys[number % #keys + 1]
  wrk.headers["Content-Type"] = "application/json"
  if args[2] == "post" then
    math.randomseed(os.time() + number)
    local run, sent = math.random(1, 999999999), 0
    function request()
      sent = sent + 1
      local text = string.format("Post %d of caller %d in run %d", sent, number, run)
      return wrk.format(nil, nil, nil, '{"text":"' .. text .. '"}')
    end
  elseif args[3] then
    local stride = tonumber(args[3])
    local at = number % #keys
    function request()
      wrk.headers["Authorization"] = "Bearer " .. keys[at + 1]
      at = (at + stride) % #keys
      return wrk.format()
    end
  end
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests":%d,"duration_us":%d,"p50_us":%d,"p90_us":%d,"p99_us":%d,"max_us":%d,' ..
    '"refused":%d,"broken":%d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(90), latency:percentile(99),
    latency.max, errors.status, errors.connect + errors.read + errors.write + errors.timeout
  ))
end
