import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { expect, it, onTestFinished } from "vitest";
import type { SandboxReport } from "../../src/base/sandbox.js";
import type { ProcessIdentity } from "../../src/base/server.js";
import { withBridge } from "../../src/runtime/process/probe.js";
import { identify } from "../../src/runtime/process/process-table.js";

const LISTEN = `require("node:net").createServer().listen(0, "127.0.0.1", function () { console.log(this.address().port); });`;
const CHILD = `require("node:child_process").spawn(process.execPath, ["-e", ${JSON.stringify(LISTEN)}], { stdio: "inherit" });`;

/** Starts a process session, and resolves with its leader and with the port on which one of its processes listens. */
async function session(program: string): Promise<{ leader: ProcessIdentity; port: number }> {
  const env = { PATH: process.env.PATH, COPILOTFLEET_LAUNCH_ID: "d2a45f5c-1b0e-4d3c-9a55-6c0f6f0a1234" };
  const child: ChildProcess = spawn(process.execPath, ["-e", program], {
    detached: true,
    stdio: ["ignore", "pipe", "inherit"],
    env,
  });
  const { pid, stdout } = child;
  if (pid === undefined || stdout === null) throw new Error("cannot start Node.js");
  onTestFinished(() => void process.kill(-pid, "SIGKILL"));
  const [line] = await once(stdout, "data");
  const leader = identify(pid);
  if (leader === null) throw new Error("the process is gone");
  return { leader, port: Number(line) };
}

it("only a process of the server's own process session counts as its bridge", async () => {
  const sandbox: SandboxReport = { mode: "landlock", not: [], network: "none" };
  const server = await session(CHILD);
  const other = await session(LISTEN);
  expect(withBridge(server.leader, { port: server.port, sandbox })?.bridge?.pid).toBeGreaterThan(0);
  expect(withBridge(server.leader, { port: other.port, sandbox })).toBeNull();
});
