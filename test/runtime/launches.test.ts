import { spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { expect, it, onTestFinished } from "vitest";
import { LAUNCH_VARIABLE } from "../../src/model/process.js";
import { FLEET_VARIABLE, processesByLaunch, processesOfLaunch } from "../../src/runtime/process/launches.js";
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
