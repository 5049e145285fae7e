import { spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { expect, it, onTestFinished } from "vitest";
import { LAUNCH_VARIABLE } from "../../src/model/process.js";
import {
  FLEET_VARIABLE,
  markOfLaunch,
  newLaunchId,
  processesByLaunch,
  processesOfLaunch,
} from "../../src/runtime/process/launches.js";
import { system } from "../../src/system/system.js";
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
  const start = () => spawn("sleep", ["60"], { stdio: "ignore", env: {}, ...(uid === undefined ? {} : { uid }) });
  const child = system().processes.withMark(mark, start);
  onTestFinished(() => void child.kill("SIGKILL"));
  return child.pid ?? 0;
}

it.skipIf(process.getuid?.() !== 0)(
  "root's processesOfLaunch finds no process of another account by a mark",
  async () => {
    const launchId = newLaunchId([]);
    const mark = markOfLaunch(launchId) ?? 0;
    const own = startMarked(mark);
    const other = startMarked(mark, 4711);
    await eventually("both programs", () => {
      const found = system()
        .processes.marked()
        .filter((each) => each.mark === mark);
      return found.some(({ pid, uid }) => pid === other && uid === 4711) && found.some(({ pid }) => pid === own);
    });
    expect(processesOfLaunch(launchId).map(({ pid }) => pid)).toEqual([own]);
  },
);

it("processesOfLaunch finds a process by the mark of its launch, and a new launch gets a mark that is free", async () => {
  const launchId = newLaunchId([]);
  const mark = markOfLaunch(launchId) ?? 0;
  const [marked, other] = [startMarked(mark), startMarked(mark === 255 ? 1 : mark + 1)];
  await eventually("both programs", () => {
    const pids = system()
      .processes.marked()
      .map(({ pid }) => pid);
    return pids.includes(marked) && pids.includes(other);
  });
  expect(processesOfLaunch(launchId).map(({ pid }) => pid)).toEqual([marked]);
  expect(processesOfLaunch(launchId.replace(/\.\d+$/, ""))).toEqual([]);
  // After a reboot, another fleet's processes may have the mark.
  expect(processesOfLaunch(launchId.replace(/\..*\./, ".00000000."))).toEqual([]);
  const all = Array.from({ length: 255 }, (_, index) => `recorded.${index + 1}`);
  expect(markOfLaunch(newLaunchId(all))).toBeNull();
  expect(markOfLaunch(newLaunchId(all.filter((id) => id !== `recorded.${mark}`)))).toBeNull();
  // The mark is only on the processes that were started with it.
  expect(
    system()
      .processes.marked()
      .map(({ pid }) => pid),
  ).not.toContain(process.pid);
});
