import { once } from "node:events";
import { createServer, type IncomingMessage } from "node:http";
import { type AddressInfo, connect } from "node:net";
import { expect, it, onTestFinished } from "vitest";
import { readBody } from "../../src/http/input.js";

/** A request that announces a body of 7 bytes, and whose client disconnects after it has sent `body`. */
async function abandonedAfter(body: string): Promise<IncomingMessage> {
  const server = createServer().listen(0, "127.0.0.1");
  onTestFinished(() => void server.close());
  await once(server, "listening");
  const client = connect((server.address() as AddressInfo).port, "127.0.0.1");
  const head = ["POST / HTTP/1.1", "Host: localhost", "Content-Type: application/json", "Content-Length: 7"];
  client.write([...head, "", body].join("\r\n"));
  const [request] = (await once(server, "request")) as [IncomingMessage];
  client.destroy();
  await new Promise((resolve) => request.once("close", resolve)); // `once` would reject, because the request is aborted
  return request;
}

async function read(incoming: IncomingMessage): Promise<unknown> {
  const context = { env: { incoming }, req: { header: (name: string) => incoming.headers[name.toLowerCase()] } };
  return await readBody(context as never, 1_000, { buffers: () => undefined, overBytes: null });
}

it("readBody reads a complete body even if the client has disconnected, because its turn has to run", async () => {
  expect(await read(await abandonedAfter('{"a":1}'))).toEqual({ a: 1 });
});

it("readBody rejects if the client disconnects before the end of the body", async () => {
  await expect(read(await abandonedAfter('{"a"'))).rejects.toThrow("The client has gone.");
});
