// http-proxy, the usual reverse proxy for Node: kept-alive connections, a path rewritten, a header injected.
import { Agent, createServer } from "node:http";
import httpProxy from "http-proxy";

const { PORT, X_URL, X_PATH, TOKEN } = process.env;
const agent = new Agent({ keepAlive: true, maxSockets: 128, maxFreeSockets: 128 });
const proxy = httpProxy.createProxyServer({
  target: X_URL,
  agent,
  headers: { authorization: `Bearer ${TOKEN}` },
});
proxy.on("error", (_error, _request, response) => response.writeHead(502).end());

const server = createServer((request, response) => {
  request.url = X_PATH;
  proxy.web(request, response);
});
server.keepAliveTimeout = 3_600_000;
server.listen(Number(PORT), "127.0.0.1");
