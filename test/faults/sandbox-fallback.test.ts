import { mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { ALL_PROTECTIONS, PROTECTIONS, type Protection, type SandboxMode } from "../../src/base/sandbox.js";
import { machineProgram } from "../../src/sandbox/programs.js";
import type { ServerView } from "../../src/servers/server.js";
import { errorOf, faultFleet } from "../fixtures/fleets/fault-fleet.js";
import { userFleet } from "../fixtures/fleets/user-fleet.js";
import { bwrapProblem } from "../fixtures/programs/bwrap.js";
import { without } from "../fixtures/programs/seccomp.js";

/** Tests of the fallbacks of `sandbox.mode`. Filters of system calls make the machine look like a weaker machine. */

const isRoot = process.getuid?.() === 0 && process.arch === "x64";

interface Doctor {
  checks: { name: string; level: string; detail: string; items: string[] }[];
}

/**
 * Weaker machines, each with the mode that `auto` chooses there, and the protections that `not` in the server's record
 * must contain (`open`) and must not contain (`closed`).
 */
const FALLBACKS: {
  machine: string;
  forbidden: Parameters<typeof without>[0];
  namespaces: boolean;
  mode: SandboxMode;
  open: Protection[];
  closed: Protection[];
  failures: RegExp[];
}[] = [
  {
    machine: "where namespaces are forbidden",
    ...{ forbidden: [], namespaces: false, mode: "landlock" },
    ...{ open: ["process-list", "ipc"], closed: ["system-calls", "signals", "files", "unix-sockets"] },
    failures: [/^bwrap failed \(bwrap: .*namespace.*\)$/],
  },
  {
    machine: "where our launcher cannot run",
    ...{ forbidden: ["seccomp"], namespaces: true, mode: "bwrap" },
    ...{ open: ["system-calls", "unix-sockets"], closed: ["process-list", "signals", "files"] },
    failures: [/^the launcher of the sandbox failed \(.*the filter of system calls/],
  },
  {
    machine: "on a kernel without Landlock",
    ...{ forbidden: ["landlock_create_ruleset"], namespaces: true, mode: "bwrap" },
    ...{ open: ["system-calls", "unix-sockets"], closed: ["process-list", "signals", "files"] },
    failures: [/^the launcher of the sandbox failed \(.*this kernel has no Landlock/],
  },
  {
    machine: "where neither namespaces nor our launcher work",
    ...{ forbidden: ["seccomp"], namespaces: false, mode: "landlock" },
    ...{ open: ["system-calls", "signals", "unix-sockets"], closed: ["files"] },
    failures: [/^the launcher of the sandbox failed \(/, /^bwrap failed \(/],
  },
  {
    machine: "where neither namespaces nor Landlock work",
    ...{ forbidden: ["landlock_create_ruleset"], namespaces: false, mode: "none" },
    ...{ open: ALL_PROTECTIONS, closed: [] },
    failures: [
      /^the launcher of the sandbox failed \(.*this kernel has no Landlock/,
      /^bwrap failed \(/,
      /^setpriv with Landlock failed \(/,
    ],
  },
];

it.skipIf(!isRoot || bwrapProblem !== undefined).each(FALLBACKS)(
  "$machine, auto chooses $mode, and the server's record and doctor name the missing protections",
  async ({ forbidden, namespaces, mode, open, closed, failures }) => {
    const user = await userFleet();
    const { fleet } = user;
    const under = [...without(forbidden, fleet.folder, { namespaces }), ...user.under];
    const { server } = await fleet.json<{ server: ServerView }>(["spawn", "--user", "alice"], { under });
    expect(server.sandbox.mode).toBe(mode);
    expect(server.sandbox.not).toEqual(expect.arrayContaining(open));
    for (const word of closed) expect(server.sandbox.not).not.toContain(word);
    await fleet.ok(["create", "--user", "alice", "--id", "s"], { under });
    expect(await fleet.ok(["send", "s", "hello", "--user", "alice"], { under })).toContain("[turn 1] hello");
    const { checks } = await fleet.json<Doctor>(["doctor", "--quick"], { under });
    const check = checks.find(({ name }) => name === "sandbox");
    const works = server.sandbox.not.includes("unix-sockets")
      ? { level: "warning", detail: `${mode} works, but agents reach the Unix sockets of other programs` }
      : { level: "ok", detail: `${mode} works` };
    expect(check).toMatchObject(
      mode === "none" ? { level: "warning", detail: "no sandbox works on this machine" } : works,
    );
    expect(check?.items.slice(0, failures.length)).toEqual(failures.map((failure) => expect.stringMatching(failure)));
    expect(check?.items.slice(failures.length)).toEqual(
      mode === "none" ? [] : server.sandbox.not.map((word) => `an agent can ${PROTECTIONS[word]}`),
    );
  },
);

it.skipIf(!isRoot || machineProgram("setpriv") === null).each(["openat2", "close_range"] as const)(
  "without the system call %s, setpriv applies Landlock in place of our launcher, and doctor names the call",
  async (name) => {
    const user = await userFleet({ COPILOTFLEET_SANDBOX_MODE: "landlock" });
    const { fleet } = user;
    const under = [...without([name], fleet.folder, { by: "ENOSYS" }), ...user.under];
    const { server } = await fleet.json<{ server: ServerView }>(["spawn", "--user", "alice"], { under });
    expect(server.sandbox.mode).toBe("landlock");
    expect(server.sandbox.not).toEqual(expect.arrayContaining(["signals", "system-calls"]));
    const { checks } = await fleet.json<Doctor>(["doctor", "--quick"], { under });
    expect(checks.find((check) => check.name === "sandbox")?.items[0]).toMatch(
      new RegExp(`^the launcher of the sandbox failed \\(.*refuses the system call ${name}: error 38\\)$`),
    );
  },
);

const NO_LANDLOCK = "Landlock alone cannot restrict root (run the fleet as an ordinary user, or install bubblewrap)";

it.skipIf(!isRoot)(
  "as root and without the program bwrap, auto chooses no sandbox, and doctor warns of it",
  async () => {
    const fleet = await faultFleet();
    const programs = join(fleet.folder, "programs");
    mkdirSync(programs);
    const under = ["/usr/bin/env", `PATH=${programs}`];
    const { server } = await fleet.json<{ server: ServerView }>(["spawn", "--user", "alice"], { under });
    expect(server.sandbox.mode).toBe("none");
    const { checks } = await fleet.json<Doctor>(["doctor", "--quick"], { under });
    expect(checks.find(({ name }) => name === "sandbox")).toMatchObject({
      level: "warning",
      items: [expect.stringMatching(/has the program bwrap$/), NO_LANDLOCK],
    });
  },
);

it.skipIf(!isRoot)("as root, the fleet refuses to start a server if sandbox.mode is landlock", async () => {
  const fleet = await faultFleet({ COPILOTFLEET_SANDBOX_MODE: "landlock" });
  const result = await fleet.run(["spawn", "--user", "alice", "--json"]);
  expect(errorOf(result)).toMatchObject({
    code: "FLEET_SANDBOX_UNUSABLE",
    message: `sandbox.mode is "landlock", but ${NO_LANDLOCK}.`,
  });
  expect(await fleet.ps()).toEqual([]);
});

it.skipIf(!isRoot || bwrapProblem !== undefined)(
  "without the program bwrap, auto chooses landlock, and doctor names the reason",
  async () => {
    const user = await userFleet();
    const { fleet } = user;
    const programs = join(fleet.folder, "programs");
    mkdirSync(programs);
    const under = [...user.under, "/usr/bin/env", `PATH=${programs}`];
    const { server } = await fleet.json<{ server: ServerView }>(["spawn", "--user", "alice"], { under });
    expect(server.sandbox.mode).toBe("landlock");
    const { checks } = await fleet.json<Doctor>(["doctor", "--quick"], { under });
    expect(checks.find(({ name }) => name === "sandbox")?.items[0]).toBe(
      "bwrap cannot be used, because no folder of the machine in PATH has the program bwrap",
    );
  },
);

it.skipIf(!isRoot || bwrapProblem !== undefined)(
  "a server in bwrap without our launcher has only the capabilities that root has under Landlock",
  async () => {
    const fleet = await faultFleet({ COPILOTFLEET_SANDBOX_MODE: "bwrap" });
    const under = without(["landlock_create_ruleset"], fleet.folder);
    const { server } = await fleet.json<{ server: ServerView }>(["spawn", "--user", "alice"], { under });
    expect(server.sandbox).toEqual({
      mode: "bwrap",
      not: ["system-calls", "unix-sockets", "network", "resources"],
    });
    // 0x1b: chown, dac_override, fowner and fsetid
    expect(readFileSync(`/proc/${server.pid}/status`, "utf8")).toMatch(
      /^CapPrm:\t0+1b\nCapEff:\t0+1b\nCapBnd:\t0+1b$/m,
    );
  },
);

it.skipIf(!isRoot || bwrapProblem !== undefined)(
  "where namespaces are forbidden, the fleet refuses to start a server if sandbox.mode is bwrap",
  async () => {
    const fleet = await faultFleet({ COPILOTFLEET_SANDBOX_MODE: "bwrap" });
    const under = without([], fleet.folder, { namespaces: false });
    const result = await fleet.run(["spawn", "--user", "alice", "--json"], { under });
    expect(result.code).toBe(3);
    expect(errorOf(result)).toMatchObject({
      code: "FLEET_SANDBOX_UNUSABLE",
      message: expect.stringMatching(/^sandbox\.mode is "bwrap", but bwrap failed \(/),
    });
    expect(await fleet.ps()).toEqual([]);
    const { stdout } = await fleet.run(["doctor", "--quick", "--json"], { under });
    const { checks } = JSON.parse(stdout) as Doctor;
    expect(checks.find(({ name }) => name === "sandbox")).toMatchObject({
      level: "failed",
      detail: "bwrap does not work on this machine",
    });
  },
);

it("without the program bwrap, the fleet refuses to start a server if sandbox.mode is bwrap", async () => {
  const fleet = await faultFleet({ COPILOTFLEET_SANDBOX_MODE: "bwrap" });
  const programs = join(fleet.folder, "programs");
  mkdirSync(programs);
  const under = ["/usr/bin/env", `PATH=${programs}`];
  const result = await fleet.run(["spawn", "--user", "alice", "--json"], { under });
  expect(errorOf(result)).toMatchObject({
    code: "FLEET_SANDBOX_UNUSABLE",
    message: expect.stringMatching(/^sandbox\.mode is "bwrap", but bwrap cannot be used, .* has the program bwrap/),
  });
});

it.skipIf(!isRoot)(
  "on a kernel without Landlock, the fleet refuses to start a server if sandbox.mode is landlock",
  async () => {
    const user = await userFleet({ COPILOTFLEET_SANDBOX_MODE: "landlock" });
    const { fleet } = user;
    const under = [...without(["landlock_create_ruleset"], fleet.folder), ...user.under];
    const result = await fleet.run(["spawn", "--user", "alice", "--json"], { under });
    expect(result.code).toBe(3);
    expect(errorOf(result)).toMatchObject({
      code: "FLEET_SANDBOX_UNUSABLE",
      message: expect.stringMatching(/^sandbox\.mode is "landlock", but the launcher of the sandbox failed/),
    });
    expect(await fleet.json(["ps"], { under })).toMatchObject({ servers: [] });
  },
);
