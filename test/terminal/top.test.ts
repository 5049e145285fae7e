import stringWidth from "string-width";
import { beforeAll, describe, expect, it } from "vitest";
import type { Overview } from "../../src/hosts/overview.js";
import { testFleet } from "../fixtures/commands/cli.js";
import { Terminal, type TerminalOptions } from "../fixtures/commands/terminal.js";
import { eventually } from "../fixtures/eventually.js";
import { unused } from "../fixtures/sessions/unused.js";

const fleet = testFleet();
const [DOWN, PAGE_DOWN, ESCAPE] = ["\x1b[B", "\x1b[6~", "\x1b"];

beforeAll(async () => {
  // Create the sessions one after the other, because ps lists servers in the order of their creation.
  await fleet.create("alice", "notes");
  await fleet.create("bob", "plans");
  await fleet.create("王小明", "draft");
  await fleet.send("alice", "notes", "hello");
});

/** The command `top` on a terminal, with a method that waits for its screen. */
class TopScreen extends Terminal {
  constructor(options: TerminalOptions = {}, flags: readonly string[] = []) {
    super(fleet, ["top", ...flags], { columns: 80, rows: 24, ...options });
  }

  /** Waits until the last frame matches. Resolves with its lines. */
  async until(pattern: RegExp): Promise<string[]> {
    try {
      return await eventually(`${pattern} on the screen`, () => pattern.test(this.frame.join("\n")) && this.frame);
    } catch (error) {
      throw new Error(`The screen shows:\n${this.frame.join("\n")}`, { cause: error });
    }
  }
}

describe("top on a terminal", () => {
  it.each([60, 80, 140])(
    "top fits a terminal of %i columns in each view, with totals above and keys below",
    async (columns) => {
      await using top = new TopScreen({ columns });
      for (const [key, heading] of [
        ["1", /^ {2}SERVER +USER .*STATE +TURNS +LATENCY/m],
        ["2", /^ {2}SESSION +OWNER .*STATE/m],
        ["3", /^ {2}USER +SERVER +TURNS +SESSIONS/m],
        ["4", /^ {2}HOST +STATE/m],
      ] as const) {
        await top.until(/^Sessions: /);
        top.type(key);
        // The last line shows that the whole frame has arrived.
        const frame = await top.until(new RegExp(`${heading.source}.*^q: quit`, "ms"));
        expect(frame).toHaveLength(24);
        expect(frame.at(-1)).toMatch(/^q: quit {2}\?: keys {2}Tab: view/);
        for (const line of frame) expect(stringWidth(line), line).toBeLessThanOrEqual(columns);
      }
      top.type("q");
      expect(await top.done).toBe(0);
      // The last bytes restore line wrapping, the cursor and the screen from before top.
      expect(top.raw.endsWith("\x1b[?7h\x1b[?25h\x1b[?1049l")).toBe(true);
    },
  );

  it("top reverses its order with S, and filters rows by any column on the screen with /", async () => {
    await using top = new TopScreen();
    await top.until(/> alice-/);
    top.type("S");
    const descending = await top.until(/sort: server descending/);
    const ids = descending.flatMap((line) => /^[> ] (\S+-[0-9a-f]{12})/.exec(line)?.[1] ?? []);
    expect(ids).toEqual(ids.toSorted().reverse());
    top.type("/bo");
    await top.until(/filter: bo \(1 of 3\)/);
    top.type("bX");
    expect((await top.until(/None of 3 servers contains "bobX"/)).join("\n")).not.toContain("bob-");
    top.type(ESCAPE);
    await top.until(/王小明/);
    // The path of each server's home contains this name, but no column on the screen shows the home.
    top.type("/servers");
    await top.until(/None of 3 servers contains "servers"/);
  });

  it("top starts in the order of --sort, and keys change that order", async () => {
    await using top = new TopScreen({}, ["--sort", "user:desc"]);
    const frame = await top.until(/sort: user descending[\s\S]*alice-/);
    expect(frame.flatMap((line) => /^[> ] \S+-[0-9a-f]{12} +(\S+)/.exec(line)?.[1] ?? [])).toEqual([
      "王小明",
      "bob",
      "alice",
    ]);
    top.type("S");
    await top.until(/sort: user {2,}|sort: user$/m);
  });

  it("top keeps the selected row selected when the order changes", async () => {
    await using top = new TopScreen();
    await top.until(/> alice-/);
    top.type(DOWN);
    await top.until(/> bob-/);
    top.type("S");
    await top.until(/sort: server descending[\s\S]*> bob-/);
  });

  it.each(["?", "h"])("top shows all keys after %s, and returns to the view after q", async (key) => {
    await using top = new TopScreen({ columns: 60 });
    await top.until(/> alice-/);
    top.type(key);
    const page = await top.until(/^Keys$/m);
    for (const line of [
      /^q +ends top/m,
      /^\/ +filters/m,
      /^D +drain \(in servers\)$/m,
      /^t +transcript \(in sessions\)$/m,
    ])
      expect(page.join("\n")).toMatch(line);
    top.type("q");
    await top.until(/> alice-/);
  });

  it("top asks before it restarts a server, and does nothing without a yes", async () => {
    const before = await fleet.pidOf("bob");
    await using top = new TopScreen();
    await top.until(/> alice-/);
    top.type(`${DOWN}R`);
    await top.until(/\[y\/N\] Restart server bob-/);
    top.type("n");
    await top.until(/Nothing done/);
    expect(await fleet.pidOf("bob")).toBe(before);
    top.type("R");
    await top.until(/\[y\/N\] Restart server bob-/);
    top.type("y");
    await top.until(/Server bob-[0-9a-f]+: ready\./);
    expect(await fleet.pidOf("bob")).not.toBe(before);
  });

  it("top drains the selected server, and the next prompt of the server's user starts the server again", async () => {
    await using top = new TopScreen();
    await top.until(/> alice-/);
    top.type("/bob\r");
    await top.until(/> bob-/);
    top.type("D");
    await top.until(/\[y\/N\] Drain server bob-/);
    top.type("y");
    await top.until(/> bob-\S+ +bob +stopped/);
    expect(await fleet.send("bob", "plans", "again")).toMatch(/again$/);
  });

  it("top shows a turn in flight, and does not evict the session during the turn", async () => {
    const turn = await fleet.turn("alice", "notes", "!delay 60000 x");
    await using top = new TopScreen();
    await top.until(/Turns: 1/);
    await top.until(/> alice-\S+ +alice +ready +1 +\d+ ms/);
    top.type("2");
    await top.until(/notes +alice +in turn/);
    top.type("/notes\r");
    await top.until(/> notes/);
    top.type("E");
    await top.until(/\[y\/N\] Evict session notes\?/);
    top.type("y");
    await top.until(/Session notes: not evicted/);
    turn.child.kill("SIGINT");
    await turn.done;
  });

  it("top shows the end of a log, scrolls it, and returns to the view", async () => {
    await using top = new TopScreen();
    await top.until(/> alice-/);
    top.type("l");
    await top.until(/^Log of alice-/m);
    await top.until(/CLI server listening/);
    top.type(PAGE_DOWN);
    top.type(ESCAPE);
    await top.until(/> alice-/);
  });

  it("top shows the transcript of the selected session", async () => {
    await using top = new TopScreen();
    await top.until(/> alice-/);
    top.type("2/notes\r");
    await top.until(/> notes/);
    top.type("t");
    await top.until(/^Transcript of notes$/m);
    const page = await top.until(/\[turn 1\] hello/);
    expect(page.join("\n")).toMatch(/^(alice|user) .*turn 1$[\s\S]*hello/m);
    top.type("q");
    await top.until(/> notes/);
  });

  it("top shows the whole heading of a table that is as wide as the terminal", async () => {
    await fleet.create("bob", `wide-${"x".repeat(80)}`);
    await using top = new TopScreen({ columns: 100 });
    await top.until(/> alice-/);
    top.type("2");
    await top.until(/^(?=.{100}$) {2}SESSION .* TITLE$/m);
    // In a full row, the cursor stays on the last character, so an erase sequence would remove that character in xterm.
    // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what a terminal interprets
    expect(top.raw).not.toMatch(/TITLE(?:\x1b\[\d+m)*\x1b\[[JK]/);
  });

  it("top breaks the long lines of a transcript, so that all of their text is on the screen", async () => {
    const id = unused("lines");
    await fleet.create("王小明", id);
    await fleet.send("王小明", id, `${"long ".repeat(40)}end`);
    await using top = new TopScreen({ columns: 60 });
    await top.until(/> alice-/);
    top.type(`2/${id}\r`);
    await top.until(/> lines-/);
    top.type("t");
    const page = (await top.until(/\[turn 1\]/)).join("");
    expect(page.match(/long/g)?.length).toBeGreaterThanOrEqual(70);
    expect(page.match(/end/g)?.length).toBe(2);
    await fleet.ok(["delete", id]);
  });

  it("Ctrl-C ends top with exit code 130 and restores the terminal", async () => {
    await using top = new TopScreen();
    await top.until(/> alice-/);
    top.type("\x03");
    expect(await top.done).toBe(130);
    expect(top.raw).toContain("\x1b[?1049l");
  });
});

describe("top --json", () => {
  it("top --json has the turns and the latency of each running server, and the users", async () => {
    const { servers, users, turns } = await fleet.json<Overview>(["top"]);
    const alice = servers.find(({ user }) => user === "alice");
    expect(alice).toMatchObject({ turns: 0, latencyMs: expect.any(Number) });
    expect(turns).toEqual([]);
    expect(users.map(({ user }) => user)).toEqual(["alice", "bob", "王小明"]);
    expect(users[0]).toMatchObject({ state: "ready", sessions: 1, turns: 0, memoryBytes: expect.any(Number) });
  });
});
