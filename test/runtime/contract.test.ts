import { type ChildProcess, execFileSync, spawn, spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { existsSync, mkdtempSync, readdirSync } from "node:fs";
import { createConnection } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { RawConnection } from "../../src/runtime/client/raw-connection.js";
import { findRuntime } from "../../src/runtime/launch/versions.js";
import { encodeMessage } from "../../src/runtime/wire/frames.js";
import { RpcError } from "../../src/runtime/wire/rpc-client.js";
import { testPorts } from "../fixtures/fleets/ports.js";
import { removeFolder } from "../fixtures/remove-folder.js";
import { MessageReader } from "../fixtures/sessions/message-reader.js";

/**
 * Tests the parts of the runtime that the fleet relies on, even though no documentation promises them: flags that
 * `--help` does not show, and methods that the SDK calls experimental. If a new version of the runtime drops one, this
 * test fails before a user notices.
 */

const { path: runtime } = findRuntime(null, {});
const home = mkdtempSync(join(tmpdir(), "copilotfleet-contract-"));
const token = randomBytes(16).toString("hex");
const { from: port } = testPorts(1);
const signal = () => AbortSignal.timeout(30_000);

const env = {
  PATH: process.env.PATH,
  HOME: home,
  COPILOT_HOME: home,
  COPILOT_CONNECTION_TOKEN: token,
  COPILOT_OFFLINE: "true",
  TOKEN_VARIABLE: "gho_contract",
};
const FLAGS = [
  "--headless",
  "--host",
  "127.0.0.1",
  "--port",
  String(port),
  "--no-auto-login",
  "--no-auto-update",
  "--auth-token-env",
  "TOKEN_VARIABLE",
  "--session-idle-timeout",
  "3600",
];

let child: ChildProcess;
let announcement: string | undefined;

beforeAll(async () => {
  const started = spawn(runtime, FLAGS, { env, stdio: ["ignore", "pipe", "pipe"] });
  child = started;
  for await (const line of createInterface(started.stdout)) {
    announcement = line;
    break;
  }
});

afterAll(async () => {
  child.kill("SIGKILL");
  await removeFolder(home);
});

/** Sends one request on a new connection without a preceding `connect`. */
async function rawRequest(method: string, params: unknown): Promise<{ error?: { message: string; code: number } }> {
  const socket = createConnection(port, "127.0.0.1");
  const decoder = new MessageReader();
  try {
    return await new Promise((resolve, reject) => {
      socket.on("error", reject);
      socket.on("close", () => reject(new Error("closed")));
      socket.on("data", (chunk) => {
        for (const message of decoder.push(chunk)) resolve(message as { error?: { message: string; code: number } });
      });
      socket.write(encodeMessage({ id: 1, method, params }));
    });
  } finally {
    socket.destroy();
  }
}

describe("the bundled runtime", () => {
  it("the runtime accepts the fleet's flags and reports on which port it listens", () => {
    expect(announcement).toBe(`CLI server listening on port ${port}`);
    expect(child.exitCode).toBeNull();
  });

  it("the runtime refuses an unknown flag, so we notice when a new version drops one of our flags", () => {
    const { status, stderr, stdout } = spawnSync(runtime, ["--headless", "--no-such-flag"], { env, encoding: "utf8" });
    expect(status).not.toBe(0);
    expect(stdout + stderr).toMatch(/unsupported argument|unknown option|unexpected/i);
  });

  it("the runtime reports that its port is taken", () => {
    const { status, stdout, stderr } = spawnSync(runtime, FLAGS, { env, encoding: "utf8", timeout: 60_000 });
    expect(status).toBe(1);
    expect(stdout + stderr).toMatch(/address already in use/i);
  });

  it("the runtime listens only on the given address", () => {
    const table = readdirSync(`/proc/${child.pid}/net`).includes("tcp6")
      ? execFileSync("cat", [`/proc/${child.pid}/net/tcp`, `/proc/${child.pid}/net/tcp6`], { encoding: "utf8" })
      : execFileSync("cat", [`/proc/${child.pid}/net/tcp`], { encoding: "utf8" });
    const hexPort = port.toString(16).toUpperCase().padStart(4, "0");
    const listening = table.split("\n").filter((line) => line.includes(`:${hexPort} `) && / 0A /.test(line));
    expect(listening.map((line) => line.trim().split(/\s+/)[1])).toEqual([`0100007F:${hexPort}`]);
  });

  it("the runtime answers connect with the protocol version and its own version, and answers a ping", async () => {
    await using connection = await RawConnection.open({ address: "127.0.0.1", port, token }, signal());
    expect(connection.protocolVersion).toBe(3);
    expect(connection.version).toMatch(/^\d+\.\d+\.\d+/);
    expect(await connection.request("ping", { message: "hello" })).toMatchObject({
      message: expect.stringContaining("hello"),
    });
  });

  it("the runtime refuses a wrong token, and every request before a connect with the correct token", async () => {
    await expect(RawConnection.open({ address: "127.0.0.1", port, token: "wrong" }, signal())).rejects.toMatchObject({
      code: "FLEET_SERVER_UNREACHABLE",
      message: expect.stringMatching(/AUTHENTICATION_FAILED/i),
    });
    expect((await rawRequest("sessions.list", {})).error).toBeDefined();
    expect((await rawRequest("session.create", { sessionId: "intruder" })).error).toBeDefined();
    expect(existsSync(join(home, "session-state", "intruder"))).toBe(false);
  });

  it("the runtime answers the methods that the drain and delete commands call, even for sessions that are not loaded", async () => {
    await using connection = await RawConnection.open({ address: "127.0.0.1", port, token }, signal());
    await connection.request("session.create", { sessionId: "idle", model: "gpt-5" });
    expect(await connection.request("session.metadata.activity", { sessionId: "idle" })).toMatchObject({
      hasActiveWork: false,
    });
    expect(readdirSync(join(home, "session-state", "idle"))).toContain(`inuse.${child.pid}.lock`);
    await connection.request("session.delete", { sessionId: "idle" });
    expect(existsSync(join(home, "session-state", "idle"))).toBe(false);
    const unknown = await connection
      .request("session.metadata.activity", { sessionId: "never" })
      .catch((error) => error);
    expect(unknown).toBeInstanceOf(RpcError);
    expect(unknown).not.toMatchObject({ rpcCode: -32601 });
    const nonsense = await connection.request("no.such.method", {}).catch((error) => error);
    expect(nonsense).toMatchObject({ rpcCode: -32601 });
  });

  it("the runtime ignores notifications that begin with $/", async () => {
    await using connection = await RawConnection.open({ address: "127.0.0.1", port, token }, signal());
    for (let index = 0; index < 3; index++) await connection.request("ping", { message: "x" }); // sends `$/ack`
    expect(child.exitCode).toBeNull();
  });

  it("the runtime exits with 0 on SIGTERM", async () => {
    child.kill("SIGTERM");
    await expect.poll(() => child.exitCode).toBe(0);
  });
});
