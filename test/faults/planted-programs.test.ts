import { existsSync, mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { eventually } from "../fixtures/eventually.js";
import { faultFleet } from "../fixtures/fleets/fault-fleet.js";
import { bwrapProblem } from "../fixtures/programs/bwrap.js";

/** Writes each file in a home from which the runtime (1.0.85) starts programs: MCP servers and hooks. */
function plant(home: string, folder: string): void {
  const touch = (name: string) => `touch ${join(folder, name)}`;
  const server = { type: "local", command: "/bin/sh", args: ["-c", touch("mcp")], tools: ["*"] };
  const hooks = (name: string) => ({ sessionStart: [{ type: "command", bash: touch(name) }] });
  const files = {
    "mcp-config.json": { mcpServers: { planted: server } },
    "config.json": { hooks: hooks("config") },
    "hooks/planted.json": { version: 1, hooks: hooks("hooks") },
    ".github/hooks/planted.json": { version: 1, hooks: hooks("repository-hooks") },
  };
  for (const [name, content] of Object.entries(files)) {
    mkdirSync(join(home, name, ".."), { recursive: true });
    writeFileSync(join(home, name), JSON.stringify(content));
  }
}

// Landlock alone does not restrict root, so root has no such sandbox.
const MODES = [
  "none",
  ...(process.getuid?.() === 0 ? [] : ["landlock"]),
  ...(bwrapProblem === undefined ? ["bwrap"] : []),
];

it.each(MODES)(
  "with session.host none and sandbox.mode %s, programs that files in the home name start neither at a turn nor at a restart",
  async (mode) => {
    const fleet = await faultFleet({ COPILOTFLEET_SESSION_HOST: "none", COPILOTFLEET_SANDBOX_MODE: mode });
    const { home } = await fleet.spawn("alice");
    const marks = join(home, "marks");
    mkdirSync(marks);
    plant(home, marks);
    await fleet.create("alice", "s");
    expect(await fleet.send("alice", "s", "hello")).toBe("[turn 1] hello");
    await fleet.ok(["restart", "--user", "alice"]);
    expect(await fleet.send("alice", "s", "again")).toBe("[turn 2] again");
    expect(await fleet.ok(["transcript", "s", "--user", "alice"])).toContain("again");
    expect(readdirSync(marks)).toEqual([]);
  },
);

it("with session.host owner, the same files start their programs", async () => {
  const fleet = await faultFleet({ COPILOTFLEET_SESSION_HOST: "owner", COPILOTFLEET_SANDBOX_MODE: "none" });
  const { home } = await fleet.spawn("alice");
  const marks = join(home, "marks");
  mkdirSync(marks);
  plant(home, marks);
  await fleet.create("alice", "s");
  await fleet.send("alice", "s", "hello");
  for (const name of ["mcp", "config", "hooks", "repository-hooks"])
    await eventually(name, () => existsSync(join(marks, name)) || undefined);
});
