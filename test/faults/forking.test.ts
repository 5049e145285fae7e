import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { rounds } from "../fixtures/fleets/fault-fleet.js";
import { bareRuntime, SETTINGS } from "../fixtures/hosts/pod-runtime.js";
import { Pods, podsProblem } from "../fixtures/hosts/pods.js";
import { judgeHistory, readHistory } from "../fixtures/sessions/session-history.js";

const problem = podsProblem();
if (problem !== undefined) console.warn(`hosts in namespaces are not tested: ${problem}`);

describe("judgeHistory", () => {
  const event = (id: string, parentId: string | null, type: string, content?: string) =>
    `${JSON.stringify({ id, parentId, type, data: { content } })}\n`;
  const begin = event("1", null, "session.start") + event("2", "1", "user.message", "one");
  const whole = `${begin}${event("3", "2", "assistant.message", "[turn 1] one")}${event("4", "3", "user.message", "two")}`;
  const sound = { forks: [], orphans: [], jumps: [], torn: 0, lost: [] };

  it("judgeHistory finds no fault in a complete history, with or without an older copy of it", () => {
    const turns = [
      { prompt: "one", reply: "[turn 1] one" },
      { prompt: "two", reply: null },
    ];
    expect(judgeHistory(whole)).toEqual({ ...sound, turns });
    expect(judgeHistory(whole, begin)).toEqual({ ...sound, turns });
  });

  it("judgeHistory finds a fork within one file, and the prompt that the fork loses", () => {
    const forked = whole + event("5", "3", "user.message", "other");
    expect(judgeHistory(forked)).toMatchObject({ forks: ["3"], jumps: ["5"], lost: ["two"], orphans: [] });
    expect(judgeHistory(forked).turns.map(({ prompt }) => prompt)).toEqual(["one", "other"]);
  });

  it("judgeHistory finds a fork between two copies, and a branch whose parent exists nowhere", () => {
    expect(judgeHistory(whole, begin + event("6", "2", "user.message", "else"))).toMatchObject({
      forks: ["2"],
      jumps: [],
      lost: ["else"],
    });
    expect(judgeHistory(whole, event("7", "gone", "user.message", "late"))).toMatchObject({
      forks: [],
      orphans: ["7"],
      lost: ["late"],
    });
    expect(judgeHistory(whole, event("8", null, "session.start"))).toMatchObject({ forks: ["the beginning"] });
  });

  it("judgeHistory counts the truncated lines of a history", () => {
    expect(judgeHistory(`${begin}{"id":"3","par`)).toMatchObject({ ...sound, torn: 1 });
  });
});

it.skipIf(problem !== undefined)(
  "without the fleet, two runtimes on two hosts with a common home fork the histories of their sessions",
  async () => {
    const count = rounds(5, 100);
    await using pods = await Pods.start({ count: 2 });
    const home = join(pods.shared, "home");
    const clients = await Promise.all(pods.hosts.map(async (host) => await bareRuntime(host, home)));
    const reports = [];
    for (let round = 0; round < count; round++) {
      const sessionId = `round-${round}`;
      const first = await clients[0]?.createSession({ ...SETTINGS, sessionId });
      await first?.sendAndWait({ prompt: "begin" });
      await first?.disconnect();
      const both = await Promise.all(clients.map((client) => client.resumeSession(sessionId, SETTINGS)));
      // Both runtimes accept a prompt to the same session, and each answers it as turn 2.
      const replies = await Promise.all(
        both.map((session, host) => session.sendAndWait({ prompt: `of host ${host}` })),
      );
      expect(replies.map((reply) => reply?.data.content)).toEqual(["[turn 2] of host 0", "[turn 2] of host 1"]);
      await Promise.all(both.map((session) => session.disconnect()));
      reports.push(readHistory(join(home, "session-state", sessionId, "events.jsonl")));
    }
    const forked = reports.filter(({ forks }) => forks.length > 0);
    console.log(`bare runtimes: ${forked.length} of ${count} histories forked`);
    expect(forked.length).toBeGreaterThan(0);
    // Each fork loses a prompt: the branch that continues lacks the turn of one host, which was answered.
    expect(forked.every(({ lost }) => lost.length > 0)).toBe(true);
    await Promise.all(clients.map((client) => client.forceStop()));
  },
);
