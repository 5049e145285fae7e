import { mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { ALL_PROTECTIONS } from "../../src/model/sandbox.js";
import type { ServerView } from "../../src/pool/server.js";
import { errorOf, faultFleet } from "../fixtures/fleets/fault-fleet.js";
import { bwrapProblem } from "../fixtures/programs/bwrap.js";
import { without } from "../fixtures/programs/seccomp.js";

/** The fallbacks of `sandbox.mode`, with filters of system calls that make the machine look like a weaker one. */

const isRoot = process.getuid?.() === 0 && process.arch === "x64";

interface Doctor {
  checks: { name: string; level: string; detail: string; items: string[] }[];
}

it.skipIf(!isRoot)(
  "where the launcher cannot run, auto takes setpriv, and names what it does not restrict",
  async () => {
    const fleet = await faultFleet();
    const under = without(["seccomp"], fleet.folder);
    const { server } = await fleet.json<{ server: ServerView }>(["spawn", "--user", "alice"], { under });
    expect(server.sandbox.mode).toBe("landlock");
    expect(server.sandbox.not).toEqual(expect.arrayContaining(["signals", "system-calls"]));
    expect(server.sandbox.not).not.toContain("files");
    await fleet.create("alice", "s", { under });
    expect(await fleet.send("alice", "s", "hello", { under })).toBe("[turn 1] hello");
  },
);

it.skipIf(!isRoot).each(["openat2", "close_range"] as const)(
  "where %s does not exist, auto takes setpriv, and doctor names the call",
  async (name) => {
    const fleet = await faultFleet();
    const under = without([name], fleet.folder, { by: "ENOSYS" });
    const { server } = await fleet.json<{ server: ServerView }>(["spawn", "--user", "alice"], { under });
    expect(server.sandbox.mode).toBe("landlock");
    expect(server.sandbox.not).toEqual(expect.arrayContaining(["signals", "system-calls"]));
    const { checks } = await fleet.json<Doctor>(["doctor", "--quick"], { under });
    expect(checks.find((check) => check.name === "sandbox")?.items[0]).toMatch(
      new RegExp(`^the launcher of the sandbox failed \\(.*refuses the system call ${name}: error 38\\)$`),
    );
  },
);

it.skipIf(!isRoot)(
  "on a kernel without Landlock, auto starts servers without a sandbox, and doctor warns",
  async () => {
    const fleet = await faultFleet();
    const under = without(["landlock_create_ruleset"], fleet.folder);
    const { server } = await fleet.json<{ server: ServerView }>(["spawn", "--user", "alice"], { under });
    expect(server.sandbox).toEqual({ mode: "none", not: ALL_PROTECTIONS });
    const { checks } = await fleet.json<Doctor>(["doctor", "--quick"], { under });
    const check = checks.find(({ name }) => name === "sandbox");
    expect(check).toMatchObject({ level: "warning", detail: "no sandbox works on this machine" });
    expect(check?.items).toEqual([
      expect.stringMatching(/^the launcher of the sandbox failed \(.*this kernel has no Landlock/),
      expect.stringMatching(/^setpriv with Landlock failed \(/),
    ]);
  },
);

it.skipIf(!isRoot || bwrapProblem !== undefined)(
  "where the launcher cannot run, bwrap works alone, and names what it does not restrict",
  async () => {
    const fleet = await faultFleet({ COPILOTFLEET_SANDBOX_MODE: "bwrap" });
    const under = without(["landlock_create_ruleset"], fleet.folder);
    const { server } = await fleet.json<{ server: ServerView }>(["spawn", "--user", "alice"], { under });
    expect(server.sandbox).toEqual({
      mode: "bwrap",
      not: ["system-calls", "unix-sockets", "network", "resources"],
    });
    expect(readFileSync(`/proc/${server.pid}/status`, "utf8")).toMatch(/^CapPrm:\t0+$/m);
    await fleet.create("alice", "s", { under });
    expect(await fleet.send("alice", "s", "hello", { under })).toBe("[turn 1] hello");
  },
);

it.skipIf(!isRoot)(
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
    message: expect.stringMatching(/^sandbox\.mode is "bwrap", but bwrap failed \(.*bwrap: not found\)/),
  });
});

it.skipIf(!isRoot)(
  "on a kernel without Landlock, the fleet refuses to start a server if sandbox.mode names it",
  async () => {
    const fleet = await faultFleet({ COPILOTFLEET_SANDBOX_MODE: "landlock" });
    const under = without(["landlock_create_ruleset"], fleet.folder);
    const result = await fleet.run(["spawn", "--user", "alice", "--json"], { under });
    expect(result.code).toBe(3);
    expect(errorOf(result)).toMatchObject({
      code: "FLEET_SANDBOX_UNUSABLE",
      message: expect.stringMatching(/^sandbox\.mode is "landlock", but the launcher of the sandbox failed/),
    });
    expect(await fleet.ps()).toEqual([]);
  },
);
