/**
 * Runs one part of `bench/gateway.ts` in a separate process, so that the part's time and memory can be measured. The
 * part is the `model`, or a `relay` to an address, which only connects two sockets for each client. The process prints
 * its address, answers each line of its input with its memory after a garbage collection, and exits when its input
 * ends.
 */
import { once } from "node:events";
import { type AddressInfo, connect, createServer } from "node:net";
import { createInterface } from "node:readline";
import { startEchoModel } from "../src/providers/echo.js";

interface Part extends AsyncDisposable {
  url: string;
}

const [name = "", target = ""] = process.argv.slice(2);
await using part = await start();
say({ url: part.url });
for await (const _ of createInterface({ input: process.stdin })) {
  // Collect twice, because finalizers of the first collection release objects that only the second can collect.
  globalThis.gc?.();
  globalThis.gc?.();
  say(process.memoryUsage());
}

async function start(): Promise<Part> {
  if (name === "relay") return await startRelay();
  const model = await startEchoModel();
  return { url: model.baseUrl, [Symbol.asyncDispose]: async () => await model.close() };
}

/** Starts a relay, which only passes bytes on: the least work that any front door in Node has to do. */
async function startRelay(): Promise<Part> {
  const [host = "", port = ""] = target.split(":");
  const server = createServer({ noDelay: true }, (client) => {
    const upstream = connect({ host, port: Number(port), noDelay: true });
    client.on("data", (chunk) => upstream.write(chunk));
    upstream.on("data", (chunk) => client.write(chunk));
    client.on("error", () => upstream.destroy());
    upstream.on("error", () => client.destroy());
    client.on("close", () => upstream.destroy());
    upstream.on("close", () => client.destroy());
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `127.0.0.1:${(server.address() as AddressInfo).port}`,
    [Symbol.asyncDispose]: async () => void server.close(),
  };
}

function say(message: object): void {
  process.stdout.write(`${JSON.stringify(message)}\n`);
}
