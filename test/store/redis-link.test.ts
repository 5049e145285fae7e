import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { expect, it, onTestFinished } from "vitest";
import { within } from "../../src/store/redis/connection.js";

it("within accepts an answer that arrived in time, even if the process was blocked beyond the time limit", async () => {
  const server = createServer().listen(0, "127.0.0.1");
  onTestFinished(() => void server.close());
  await once(server, "listening");
  const client = connect((server.address() as AddressInfo).port, "127.0.0.1");
  onTestFinished(() => void client.destroy());
  const [other] = (await once(server, "connection")) as [Socket];
  const answer = within(once(client, "data"), performance.now() + 50);
  other.write("answer");
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 100); // blocks this process beyond the time limit
  expect(String(await answer)).toBe("answer");
});
