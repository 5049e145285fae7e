import { spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { expect, it, onTestFinished } from "vitest";
import { LAUNCH_VARIABLE } from "../../src/base/server.js";
import {
  FLEET_VARIABLE,
  markOf,
  processesByLaunch,
  processesOfLaunch,
} from "../../src/runtime/process/process-table.js";
import { eventually } from "../fixtures/eventually.js";

const SESSION_VARIABLE = "COPILOT_AGENT_SESSION_ID";

/** Starts shells inside each other, one for each entry. Each has only the variables in its entry. */
function nested(environments: readonly Record<string, string>[]): void {
  const command = environments.reduceRight((inner, environment) => {
    const variables = Object.entries(environment).map(([name, value]) => `${name}=${value}`);
    // The command "true" at the end keeps the shell from replacing itself with the command before it.
    return `env -i PATH="$PATH" ${variables.join(" ")} sh -c '${inner.replaceAll("'", `'\\''`)}; true'`;
  }, "sleep 60");
  const child = spawn("sh", ["-c", `${command}; true`], { stdio: "ignore", detached: true });
  onTestFinished(() => void process.kill(-(child.pid ?? 0), "SIGKILL"));
}

it.each([
  ["a session of another fleet", { [LAUNCH_VARIABLE]: `outer-${randomUUID()}`, [SESSION_VARIABLE]: "outer" }],
  ["a session of a Copilot CLI", { [SESSION_VARIABLE]: "outer" }],
])(
  "a server's process that names no session is attributed to none, even if the fleet itself runs in %s",
  async (_, outer) => {
    const [launchId, stateRoot] = [randomUUID(), `/fleet-${randomUUID()}`];
    const own = { [LAUNCH_VARIABLE]: launchId, [FLEET_VARIABLE]: stateRoot };
    nested([outer, own, { ...own, [SESSION_VARIABLE]: "inner" }, {}]);
    // The launch has four processes: its own shell, which names no session, the shell of the session "inner", and below
    // that a shell and sleep, which have no variables.
    const found = await eventually("the processes", () => {
      const processes = processesByLaunch(stateRoot).get(launchId) ?? [];
      return processes.length === 4 ? processes : null;
    });
    expect(found.map(({ sessionId }) => sessionId).sort()).toEqual(["inner", "inner", "inner", null]);
    expect(processesOfLaunch(launchId)).toHaveLength(2);
  },
);

/** Starts a process with a mark, and without environment. */
function startMarked(mark: number, uid?: number): number {
  const options = { stdio: "ignore", env: {}, ...(uid === undefined ? {} : { uid }) } as const;
  const child = spawn("/bin/bash", ["-c", `ulimit -x ${mark}; exec -c /bin/sleep 60`], options);
  onTestFinished(() => void child.kill("SIGKILL"));
  return child.pid ?? 0;
}

const limitsOf = (pid: number) => readFileSync(`/proc/${pid}/limits`, "utf8");

it.skipIf(process.platform !== "linux")(
  "processesOfLaunch finds a process by the mark of its launch, and none with another launch's mark",
  async () => {
    const [launchId, otherId] = [randomUUID(), randomUUID()];
    const [marked, other] = [startMarked(markOf(launchId)), startMarked(markOf(otherId))];
    await eventually("the marks", () => [marked, other].every((pid) => !/file locks +unlimited/.test(limitsOf(pid))));
    expect(processesOfLaunch(launchId).map(({ pid }) => pid)).toEqual([marked]);
    expect(processesOfLaunch(otherId).map(({ pid }) => pid)).toEqual([other]);
  },
);

it.skipIf(process.getuid?.() !== 0)(
  "root's processesOfLaunch finds no process of another account by a mark",
  async () => {
    const launchId = randomUUID();
    const [own, other] = [startMarked(markOf(launchId)), startMarked(markOf(launchId), 4711)];
    await eventually("the marks", () => [own, other].every((pid) => !/file locks +unlimited/.test(limitsOf(pid))));
    expect(processesOfLaunch(launchId).map(({ pid }) => pid)).toEqual([own]);
  },
);
