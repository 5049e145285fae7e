import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { approveAll, CopilotClient, RuntimeConnection } from "@github/copilot-sdk";
import { describe, expect, it } from "vitest";
import { ModelProvider } from "../../src/providers/provider.js";
import { removeFolder } from "../fixtures/remove-folder.js";
import { Stopwatch } from "../fixtures/stopwatch.js";

const TOKEN = "echo-test-token";
const TURN_MS = 20_000;

/** Starts the bundled runtime with the home folder `home`. The caller has to kill `child`. */
async function startRuntime(home: string): Promise<{ port: number; child: ChildProcess }> {
  const platform = `${process.platform}-${process.arch}`;
  const sdk = createRequire(import.meta.url).resolve(`@github/copilot-sdk-${platform}/package.json`);
  const child = spawn(
    join(dirname(sdk), "prebuilds", platform, "copilot-runtime"),
    ["--headless", "--port", "0", "--host", "127.0.0.1", "--no-auto-login", "--no-auto-update"],
    {
      env: {
        PATH: process.env.PATH,
        HOME: home,
        COPILOT_HOME: home,
        COPILOT_CONNECTION_TOKEN: TOKEN,
        COPILOT_OFFLINE: "true",
      },
      stdio: ["ignore", "pipe", "ignore"],
    },
  );
  for await (const line of createInterface(child.stdout)) {
    const port = /listening on port (\d+)/.exec(line)?.[1];
    if (port !== undefined) return { port: Number(port), child };
  }
  throw new Error("the runtime ended before it listened");
}

describe("the echo model behind the real runtime", () => {
  it("the echo model gets the whole history from the runtime, even after another client resumed the session", async () => {
    const home = await mkdtemp(join(tmpdir(), "fleet-echo-"));
    await using model = new ModelProvider(
      {
        provider: { type: "echo" },
        runtime: { path: null, args: [], env: [] },
      },
      { env: {}, networkFolder: "/nowhere" },
    );
    const provider = await model.of("echo", {});
    const { port, child } = await startRuntime(home);
    const connect = () =>
      new CopilotClient({ connection: RuntimeConnection.forUri(`127.0.0.1:${port}`, { connectionToken: TOKEN }) });
    if (provider === null) throw new Error("no provider");
    const options = { model: "gpt-5", provider, onPermissionRequest: approveAll };
    try {
      const first = connect();
      const session = await first.createSession({ ...options, sessionId: "echo" });
      expect((await session.sendAndWait({ prompt: "hi" }, TURN_MS))?.data.content).toBe("[turn 1] hi");
      expect((await session.sendAndWait({ prompt: "again" }, TURN_MS))?.data.content).toBe("[turn 2] again");
      await first.stop();

      const second = connect();
      const resumed = await second.resumeSession("echo", { ...options, streaming: true });
      expect((await resumed.sendAndWait({ prompt: "and\n<b>more</b>" }, TURN_MS))?.data.content).toBe(
        "[turn 3] and\n<b>more</b>",
      );
      using took = new Stopwatch();
      await expect(resumed.sendAndWait({ prompt: "!fail on purpose" }, TURN_MS)).rejects.toThrow("on purpose");
      expect(took.ms).toBeLessThan(4_000);
      await second.stop();
    } finally {
      const exited = once(child, "exit");
      child.kill("SIGKILL");
      await exited;
      await removeFolder(home);
    }
  });
});
