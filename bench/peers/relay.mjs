// A relay as one writes it on Node: node:http in front, undici behind, a header injected. Nothing else.
import { createServer } from "node:http";
import { Pool } from "undici";

const { PORT, X_URL, X_PATH, TOKEN } = process.env;
const x = new Pool(X_URL, { connections: 128 });
const headers = { authorization: `Bearer ${TOKEN}`, "content-type": "application/json" };

const server = createServer((request, response) => {
  const parts = [];
  request.on("data", (part) => parts.push(part));
  request.on("end", async () => {
    try {
      const reply = await x.request({ method: "POST", path: X_PATH, headers, body: Buffer.concat(parts) });
      const body = await reply.body.text();
      response.writeHead(reply.statusCode, { "content-type": "application/json" });
      response.end(body);
    } catch {
      response.writeHead(502);
      response.end();
    }
  });
});
server.keepAliveTimeout = 3_600_000;
server.listen(Number(PORT), "127.0.0.1");
