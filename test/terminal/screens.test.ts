import stringWidth from "string-width";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { ServerRecord } from "../../src/base/server.js";
import { openStore } from "../../src/store/store.js";
import { TestFleet, testFleet } from "../fixtures/commands/cli.js";
import { Terminal, type TerminalOptions } from "../fixtures/commands/terminal.js";
import { serverRecord, sessionRecord } from "../fixtures/store/store-records.js";

/**
 * The screens of the commands that print lists, as files in `test/cli/screens`. If a change of a screen is intended,
 * update the files with `npx vitest run test/terminal/screens.test.ts -u` and read them.
 */

const fleet = testFleet();
const HOUR_MS = 3_600_000;
const LONG = "l".repeat(120);
const USERS = ["alice", "李雷", "محمد", "émile.dupont@example.org", LONG];
const WIDTHS = [60, 80, 140];

function ago(hours: number): string {
  return new Date(Date.now() - hours * HOUR_MS).toISOString();
}

/** A record whose values are the same in every run. The server does not run, so the record needs no process. */
function recorded(user: string, index: number): ServerRecord {
  const id = `${/^\w+/.exec(user)?.[0].slice(0, 24) ?? "user"}-${index}bd806c97f0e`;
  const ended =
    index === 1 ? ({ state: "failed", failure: "its process is gone" } as const) : { state: "stopped" as const };
  return serverRecord(id, {
    ...{ user, ...ended, desired: "stopped", process: null, port: null, startedAt: null, crashes: index },
    ...{ home: `/fleet/servers/${id}/home`, cwd: `/work/${index}`, createdAt: `2026-01-0${index + 1}T00:00:00.000Z` },
  });
}

beforeAll(async () => {
  const store = openStore("file", fleet.root);
  const servers = USERS.map(recorded);
  await store.registry.update((registry) => {
    for (const server of servers) registry.servers[server.id] = server;
    registry.servers["shared-1"] = { ...recorded("x", 6), id: "shared-1", user: null, isolation: "shared" };
  });
  for (const [index, owner] of USERS.entries()) {
    const serverId = servers[index]?.id ?? "";
    const times = { createdAt: ago(24 * (index + 1) + 1), lastUsedAt: ago(index + 1) };
    const others =
      index % 2 === 0
        ? { purpose: "🚀 launch 发布 إطلاق", ttlMs: 100 * HOUR_MS }
        : { kind: "collaborative" as const, members: ["bob", "محمود"], model: "gpt-5", turns: 1, ttlMs: HOUR_MS };
    const id = index === 4 ? "s".repeat(120) : `${index}ba2d2f0-6ab5-4a2c-9d3a-5c58452b9ddf`;
    await store.sessions.create(sessionRecord(id, { owner, serverId, ...times, ...others }));
    await store.tokens.create({
      ...{ id: `${index}123456789abcdef`, user: owner, sha256: "0".repeat(64), createdAt: ago(index + 1) },
      expiresAt: index === 0 ? null : ago(index === 1 ? 1 : -24 * index - 1),
    });
  }
  const lease = { sessionId: "0ba2d2f0-6ab5-4a2c-9d3a-5c58452b9ddf", holder: LONG, token: "t", ttlMs: 10.5 * HOUR_MS };
  await store.leases.acquire({ ...lease, placeMs: 1_000, detached: true });
});

async function screenOf(args: readonly string[], options: TerminalOptions = {}): Promise<Terminal> {
  const terminal = new Terminal(fleet, args, options);
  expect(await terminal.done, terminal.text).toBe(0);
  return terminal;
}

describe("the screens of lists", () => {
  it.each([
    ["ps", ["ps"], 6],
    ["list", ["list"], 5],
    ["token-list", ["token", "list"], 5],
  ] as const)(
    "%s prints each row on one line, whatever the writing system and length of its ids, and cuts none in a pipe",
    async (name, args, rows) => {
      const shown = await Promise.all(WIDTHS.map(async (columns) => (await screenOf(args, { columns })).text));
      const [pipe, wide] = await Promise.all([fleet.ok(args), fleet.ok([...args, "-o", "wide"])]);
      const titles = [...WIDTHS.map((columns) => `${columns} columns`), "pipe", "pipe, wide"];
      const all = [...shown, pipe, wide].map((text, at) => `--- ${titles[at]} ---\n${text}`).join("\n");
      await expect(all).toMatchFileSnapshot(`../cli/screens/${name}.txt`);
      for (const [at, columns] of WIDTHS.entries()) {
        for (const line of shown[at]?.split("\n").slice(0, rows + 1) ?? [])
          expect(stringWidth(line), line).toBeLessThanOrEqual(columns);
      }
      expect(pipe).toContain(LONG);
    },
  );

  it.each([[["ps"]], [["list"]], [["token", "list"]]])(
    "%j prints no colours with NO_COLOR or --no-color, and prints colours to a pipe with CLICOLOR_FORCE",
    async (args) => {
      const coloured = (await screenOf(args)).raw;
      expect(coloured).toContain("\x1b[1m");
      const env = { NO_COLOR: "1", CLICOLOR_FORCE: "1" };
      expect((await screenOf(args, { env })).raw).toBe(uncoloured(coloured));
      expect((await screenOf([...args, "--no-color"])).raw).toBe(uncoloured(coloured));
      const forced = await fleet.ok(args, { env: { CLICOLOR_FORCE: "1" } });
      expect(forced).toContain("\x1b[1m");
      expect(uncoloured(forced)).toBe(await fleet.ok(args));
    },
  );
});

function uncoloured(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: colours are control sequences
  return text.replace(/\x1b\[\d+m/g, "");
}

describe("the screens of describe", () => {
  it("describe shows a server, a session and a user in sections, and ends with the next commands", async () => {
    const names = ["user-1bd806c97f0e", "0ba2d2f0-6ab5-4a2c-9d3a-5c58452b9ddf", "李雷"];
    const shown = await Promise.all(names.map(async (name) => (await screenOf(["describe", name])).text));
    const stable = shown
      .join("\n")
      .replace(/\d{4}-\d\d-\d\dT[\d:.]+Z/g, "2026-01-01T00:00:00.000Z")
      .replace(/\(\d+d ago\)/g, "(1d ago)");
    await expect(stable).toMatchFileSnapshot("../cli/screens/describe.txt");
  });
});

describe("the screen of a server that runs", () => {
  const running = new TestFleet();
  beforeAll(async () => {
    await running.ok(["create", "--user", "alice", "--id", "notes", "--prompt", "hello"]);
  });
  afterAll(async () => await running.end());

  it("ps shows address, process, uptime, memory and sessions of a running server", async () => {
    const shown = await Promise.all(
      WIDTHS.map(async (columns) => {
        const terminal = new Terminal(running, ["ps"], { columns });
        await terminal.done;
        return `--- ${columns} columns ---\n${withStableValues(terminal.text)}`;
      }),
    );
    await expect(shown.join("\n")).toMatchFileSnapshot("../cli/screens/ps-running.txt");
  });
});

/** Replaces the values that differ in each run, and adapts the widths of their columns. */
function withStableValues(text: string): string {
  const rows = text
    .trimEnd()
    .split("\n")
    .map((line) => line.split(/ {3,}/));
  const stable = rows.map(([...cells]) =>
    cells.map((cell, at) => {
      const heading = rows[0]?.[at];
      if (cell === heading) return cell;
      if (heading === "PID") return "4711";
      if (heading === "UPTIME") return "2s";
      return cell.replace(/^(127\.0\.0\.1):\d+$/, "$1:5000").replace(/^\d+\.\d MB$/, "50.0 MB");
    }),
  );
  const widths = stable[0]?.map((_, at) => Math.max(...stable.map((cells) => cells[at]?.length ?? 0))) ?? [];
  return stable
    .map(
      (cells) =>
        `${cells
          .map((cell, at) => cell.padEnd(widths[at] ?? 0))
          .join("   ")
          .trimEnd()}\n`,
    )
    .join("");
}
