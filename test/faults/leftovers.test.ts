import { randomUUID } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { expect, it, onTestFinished } from "vitest";
import { identify } from "../../src/runtime/process/process-table.js";
import type { ServerView } from "../../src/servers/server.js";
import { eventually } from "../fixtures/eventually.js";
import { serve } from "../fixtures/fleets/serve.js";
import { fleetAs } from "../fixtures/fleets/user-fleet.js";
import { startToolModel } from "../fixtures/models/tool-model.js";
import { isRunning } from "../fixtures/processes.js";

const PRLIMIT64 = process.arch === "arm64" ? 261 : 302;

/**
 * A program that removes all traces of its server: its environment, its process session, its parents, and, if the
 * sandbox allows it, its mark.
 */
const stray = (name: string) =>
  `env -i setsid perl -e 'fork and exit; $limit = pack("Q2", 5, 5); syscall(${PRLIMIT64}, 0, 10, $limit, 0); $0 = "${name}"; sleep'`;

/** The PIDs of the strays of this name that run. */
function strays(name: string): number[] {
  return readdirSync("/proc")
    .map(Number)
    .filter((pid) => Number.isInteger(pid) && read(pid, "cmdline")?.split("\0")[0] === name)
    .filter((pid) => identify(pid) !== null);
}

function read(pid: number, file: string): string | null {
  try {
    return readFileSync(`/proc/${pid}/${file}`, "utf8");
  } catch {
    return null; // it ended
  }
}

it.each(["stop", "serve"] as const)(
  "under Landlock, a detached program of an agent without environment and parents ends with its server (%s)",
  async (ending) => {
    await using model = await startToolModel();
    const { fleet, run } = await fleetAs("an ordinary user", { ...model.env, COPILOTFLEET_SANDBOX_MODE: "landlock" });
    const serving = ending === "serve" ? await serve(fleet, run) : null;
    await fleet.ok(["spawn", "--user", "alice"], run);
    await fleet.ok(["spawn", "--user", "bob"], run);
    const { servers } = await fleet.json<{ servers: ServerView[] }>(["ps"], run);
    const [server, bob] = ["alice", "bob"].map((user) => servers.find((each) => each.user === user)?.pid ?? 0);
    await fleet.ok(["create", "--user", "alice", "--id", "of-alice"], run);
    const name = `stray ${randomUUID()}`;
    onTestFinished(() => strays(name).forEach((pid) => void process.kill(pid, "SIGKILL")));
    const call = JSON.stringify({ command: stray(name), description: "detaches" });
    await fleet.ok(["send", "of-alice", `!tool bash ${call}`, "--user", "alice"], run);
    // The model calls its tool twice.
    const found = await eventually("the strays", () => (strays(name).length === 2 ? strays(name) : null));
    for (const pid of found) {
      expect(read(pid, "environ")).toBe("");
      const [parent, , session] = (read(pid, "stat") ?? "")
        .replace(/^.*\) \w /s, "")
        .split(" ")
        .map(Number);
      expect([parent, session]).not.toContain(server);
    }
    if (serving === null) {
      await fleet.ok(["stop", "--user", "alice"], run);
      expect(isRunning(bob ?? 0), "another user's server").toBe(true);
    } else expect((await serving.end()).code).toBe(0);
    expect(strays(name)).toEqual([]);
  },
);
