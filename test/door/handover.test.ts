import { spawn } from "node:child_process";
import { createServer, type Server } from "node:net";
import { expect, it, onTestFinished } from "vitest";
import { bundleFixture } from "../fixtures/bundle.js";
import { eventually } from "../fixtures/eventually.js";
import { CertificateFiles, TestAuthority } from "../fixtures/tls/authority.js";
import { DoorFleet } from "./harness.js";
import { RawClient } from "./raw-client.js";

const SCRIPT = bundleFixture("door");

/** Node has no public API for the descriptor of a server, so this reads a private field. */
function descriptorOf(server: Server): number {
  const { _handle } = server as unknown as { _handle: { fd: number } };
  return _handle.fd;
}

/** Starts a process that inherits the descriptor, and that opens its front door on request. */
function holdDoor(env: NodeJS.ProcessEnv, fd: number) {
  const child = spawn(process.execPath, [SCRIPT], { env, stdio: ["pipe", "pipe", "inherit", fd] });
  onTestFinished(() => void child.kill("SIGKILL"));
  let output = "";
  child.stdout?.on("data", (chunk: Buffer) => {
    output += chunk.toString();
  });
  return {
    child,
    output: () => output,
    open: async () => {
      child.stdin?.write("open\n");
      await eventually("the door", () => output.includes("open"));
    },
  };
}

it("a front door hands its port to its successor without a refused connection or a lost turn", async () => {
  await using at = await DoorFleet.open();
  const token = await at.token("ann");
  const holder = createServer();
  await new Promise<void>((resolve) => holder.listen(0, "127.0.0.1", resolve));
  const address = holder.address();
  const url = `127.0.0.1:${typeof address === "object" ? address?.port : ""}`;
  const fd = descriptorOf(holder);
  const env = {
    ...at.env,
    COPILOTFLEET_PORTS_FROM: String(at.ports.from),
    COPILOTFLEET_PORTS_TO: String(at.ports.to),
    COPILOTFLEET_PROVIDER_TYPE: "openai",
    COPILOTFLEET_PROVIDER_BASE_URL: at.model.baseUrl,
  };

  const [first, second] = [holdDoor(env, fd), holdDoor(env, fd)];
  await new Promise((resolve) => holder.close(resolve));
  await first.open();
  const client = await RawClient.as(url, token);
  await client.requestOk("session.create", { sessionId: "s" });
  await client.turnOk("s", "one");
  await client.requestOk("session.send", { sessionId: "s", prompt: "!hold door last" });

  await second.open();
  let going = true;
  let connected = 0;
  const knocking = (async () => {
    while (going) {
      // While the first door closes, it may accept a guest and then hang up. But it refuses no connection.
      const guest = await RawClient.open(url);
      const greeted = await guest.request("connect", { token, supportedTaskKinds: [] }).catch(() => null);
      guest.socket.destroy();
      if (greeted?.error === undefined && greeted !== null) connected++;
    }
  })();
  first.child.kill("SIGTERM");
  at.model.letGo("door");
  await eventually("the end of the first door", () => first.child.exitCode !== null, 30_000);
  const before = connected;
  await eventually("connections at the second", () => connected > before + 10);
  going = false;
  await knocking;
  expect(first.output()).toContain("cut 0");
  expect(client.events("s")).toContain("session.idle");
  expect(JSON.stringify(client.received)).toContain("you said: !hold door last");

  const again = await RawClient.as(url, token);
  expect(await again.request("session.resume", { sessionId: "s" })).toMatchObject({ result: {} });
  expect(await again.turn("s", "two")).toMatchObject({ result: {} });
  second.child.kill("SIGTERM");
  await eventually("the end of the second door", () => second.child.exitCode !== null, 30_000);
});

it("a front door with serve.tls speaks TLS on an inherited descriptor", async () => {
  await using at = await DoorFleet.open();
  const authority = new TestAuthority();
  const { cert, key } = new CertificateFiles(at.folder, authority.issue());
  const holder = createServer();
  await new Promise<void>((resolve) => holder.listen(0, "127.0.0.1", resolve));
  const { port } = holder.address() as { port: number };
  const env = { ...at.env, COPILOTFLEET_SERVE_TLS_CERT: cert, COPILOTFLEET_SERVE_TLS_KEY: key };
  const door = holdDoor(env, descriptorOf(holder));
  await new Promise((resolve) => holder.close(resolve));
  await door.open();
  const url = `127.0.0.1:${port}`;
  const client = await RawClient.openTls(url, { ca: authority.cert });
  client.send({ id: 1, method: "connect", params: { token: "wrong" } });
  expect((await client.answerTo(1)).error).toMatchObject({ message: "AUTHENTICATION_FAILED" });
  const plain = await RawClient.open(url);
  plain.send({ id: 1, method: "connect", params: {} });
  await plain.end();
  expect(plain.received).toMatchObject([{ error: { message: expect.stringContaining("only TLS") } }]);
  door.child.kill("SIGTERM");
  await eventually("the end of the door", () => door.child.exitCode !== null, 30_000);
});

it.each([
  [
    "is refused",
    {},
    /^not open: The address of the socket that was handed to this process is "0\.0\.0\.0:\d+", which other/,
  ],
  ["is opened with insecure", { COPILOTFLEET_INSECURE: "true" }, /^open$/m],
])(
  "on an inherited descriptor that other machines can reach, a front door without TLS %s",
  async (_, variables, output) => {
    await using at = await DoorFleet.open();
    const holder = createServer();
    await new Promise<void>((resolve) => holder.listen(0, "0.0.0.0", resolve));
    const { port } = holder.address() as { port: number };
    const door = holdDoor({ ...at.env, ...variables }, descriptorOf(holder));
    await new Promise((resolve) => holder.close(resolve));
    await door.open();
    expect(door.output()).toMatch(output);
    const isOpen = door.output().startsWith("open");
    if (!isOpen) await eventually("the end", () => door.child.exitCode !== null, 30_000);
    const client = await RawClient.open(`127.0.0.1:${port}`).catch(() => null);
    expect(client !== null).toBe(isOpen);
  },
);
