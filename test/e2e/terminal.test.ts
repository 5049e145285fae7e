import stringWidth from "string-width";
import { beforeAll, describe, expect, it } from "vitest";
import { openStore } from "../../src/store/store.js";
import { testFleet } from "../fixtures/commands/cli.js";
import { Terminal, type TerminalOptions } from "../fixtures/commands/terminal.js";
import { serverRecord, sessionRecord } from "../fixtures/store/store-records.js";

const fleet = testFleet();
// biome-ignore lint/suspicious/noControlCharactersInRegex: this is how a terminal gets colours
const COLOUR = /\x1b\[[\d;]*m/;
const LONG = "u".repeat(128);
const USERS = ["alice", "李雷", "محمد", LONG];
const UUID = "0ba2d2f0-6ab5-4a2c-9d3a-5c58452b9ddf";

/** Records servers and sessions as if the fleet had been used. The servers are stopped, so they need no process. */
beforeAll(async () => {
  const store = openStore("file", fleet.root);
  await store.registry.update(({ servers }) => {
    const stopped = { state: "stopped", desired: "stopped", process: null, port: null, startedAt: null } as const;
    for (const user of [...USERS, ...Array.from({ length: 36 }, (_, index) => `user-${index}`)]) {
      const id = `${user.slice(0, 24)}-2bd806c97f0e`;
      servers[id] = serverRecord(id, { ...stopped, user, home: `${fleet.root}/homes/${id}` });
    }
  });
  for (const [index, owner] of USERS.entries()) {
    await store.sessions.create(sessionRecord(`${index}${UUID}`, { owner, serverId: `${owner}-2bd806c97f0e` }));
  }
});

async function shown(args: readonly string[], options: TerminalOptions = {}): Promise<Terminal> {
  const terminal = new Terminal(fleet, args, options);
  expect(await terminal.done).toBe(0);
  return terminal;
}

describe("colours", () => {
  it("output on a terminal has colours, unless NO_COLOR or --no-color turns them off", async () => {
    expect((await shown(["ps"])).raw).toMatch(COLOUR);
    expect((await shown(["ps"], { env: { NO_COLOR: "" } })).raw).toMatch(COLOUR);
    for (const [args, env] of [
      [["ps"], { NO_COLOR: "1" }],
      [["ps", "--no-color"], {}],
      [["list"], { NO_COLOR: "0", CLICOLOR_FORCE: "1" }],
      [["doctor", "--no-color"], { FORCE_COLOR: "1" }],
      [["top", "--once"], { NO_COLOR: "1" }],
      [["--help"], { NO_COLOR: "1" }],
    ] as const) {
      expect((await shown(args, { env })).raw, args.join(" ")).not.toMatch(COLOUR);
    }
  });

  it("output in a pipe has colours only when CLICOLOR_FORCE is 1 and NO_COLOR is not set", async () => {
    for (const [env, isColoured] of [
      [{ CLICOLOR_FORCE: "1" }, true],
      [{ CLICOLOR_FORCE: "0" }, false],
      [{ CLICOLOR_FORCE: "1", NO_COLOR: "1" }, false],
      [{}, false],
    ] as const) {
      expect(COLOUR.test(await fleet.ok(["ps"], { env })), JSON.stringify(env)).toBe(isColoured);
    }
  });
});

describe("a table on a terminal", () => {
  it.each([60, 80, 140])(
    "a table on a terminal of %i columns prints each row on one line, and keeps its most important columns",
    async (columns) => {
      const [ps = [], list = [], top = []] = await Promise.all(
        [["ps"], ["list"], ["top", "--once"]].map(async (args) => (await shown(args, { columns })).text.split("\n")),
      );
      for (const line of [...ps, ...list, ...top]) expect(stringWidth(line), line).toBeLessThanOrEqual(columns);
      expect(ps.filter((line) => line !== "")).toHaveLength(41);
      expect(ps[0]).toMatch(/^SERVER +USER +.*STATE/);
      expect(ps.filter((line) => /u…u+ .*stopped/.test(line))).toHaveLength(1);
      expect(list.filter((line) => line !== "")).toHaveLength(5);
      expect(list[0]).toMatch(/^SESSION +OWNER +.*STATE/);
      expect(top.slice(0, 4)).toEqual([
        expect.stringMatching(/^HOST +STATE/),
        ...[expect.anything(), ""],
        expect.stringMatching(/^SERVER +USER +.*STATE +TURNS/),
      ]);
    },
  );

  it("a table in a pipe has all columns, and cuts no value", async () => {
    const [heading, ...rows] = (await fleet.ok(["ps"])).trimEnd().split("\n");
    expect(heading).toMatch(/^SERVER +USER +URL +PID +STATE +SANDBOX +UPTIME +MEMORY +SESSIONS +LOADED$/);
    expect(rows.filter((row) => row.includes(LONG))).toHaveLength(1);
    expect(await fleet.ok(["list"])).toMatch(new RegExp(`^0${UUID} +alice +alice-2bd806c97f0e +idle`, "m"));
  });
});
