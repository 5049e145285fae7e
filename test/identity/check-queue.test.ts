import { beforeEach, describe, expect, it } from "vitest";
import { CheckQueue, MOST_CHECKS, MOST_WAITING } from "../../src/identity/github.js";

const STRANGER = "203.0.113.9";

let queue: CheckQueue;
let clock: { ms: number; now: () => number };
/** The names of the checks, in the order in which they began, and functions that end the running checks. */
let begun: string[];
let ends: (() => void)[];

beforeEach(() => {
  clock = { ms: 0, now: () => clock.ms };
  queue = new CheckQueue(clock);
  begun = [];
  ends = [];
});

async function check(name: string, address: string | null): Promise<string | null> {
  return await queue.run(address, async () => {
    begun.push(name);
    await new Promise<void>((resolve) => ends.push(resolve));
    return name;
  });
}

/** Starts `count` checks of tokens of a stranger. */
function flood(count: number): { checks: Promise<string | null>[] } {
  return { checks: Array.from({ length: count }, async () => await check("stranger", STRANGER)) };
}

/** Ends `count` running checks, one after the other. After each, waiting checks may begin. */
async function end(count: number): Promise<void> {
  for (let at = 0; at < count; at++) {
    ends.shift()?.();
    await new Promise(setImmediate);
  }
}

describe("the queue of checks", () => {
  it("the queue runs a bounded number of checks at the same time", async () => {
    flood(MOST_CHECKS + 10);
    await end(0);
    expect(begun).toHaveLength(MOST_CHECKS);
    await end(5);
    expect(begun).toHaveLength(MOST_CHECKS + 5);
    await end(MOST_CHECKS + 5);
    expect(begun).toHaveLength(MOST_CHECKS + 10);
    flood(MOST_CHECKS + 1);
    expect(begun).toHaveLength(2 * MOST_CHECKS + 10);
  });

  it("a client's check waits for at most one check of a stranger, even if the stranger has 500 waiting", async () => {
    flood(MOST_CHECKS + 500);
    void check("alice", "198.51.100.7");
    void check("bob", "198.51.100.8");
    await end(3);
    expect(begun.slice(MOST_CHECKS)).toEqual(["stranger", "alice", "bob"]);
  });

  it("the checks of tokens that were good before run before all other waiting checks", async () => {
    flood(MOST_CHECKS + 500);
    void check("alice", null);
    await end(2);
    expect(begun.slice(MOST_CHECKS)).toEqual(["alice", "stranger"]);
  });

  it("when too many checks wait, the queue refuses the newest check of the address with the most checks", async () => {
    const { checks: strangers } = flood(MOST_CHECKS + MOST_WAITING);
    const alice = check("alice", "198.51.100.7");
    const good = check("good", null);
    const late = check("late", STRANGER);
    expect(await late).toBeNull();
    expect(await Promise.all(strangers.slice(-2))).toEqual([null, null]);
    await end(3);
    expect(begun.slice(MOST_CHECKS)).toEqual(["good", "stranger", "alice"]);
    await end(MOST_CHECKS + MOST_WAITING);
    expect(await Promise.all([alice, good])).toEqual(["alice", "good"]);
    expect((await Promise.all(strangers)).filter((name) => name === null)).toHaveLength(2);
  });

  it.each([
    ["2001:db8:1:2::1", "2001:db8:1:2:ffff::9", "2001:db8:1:3::1"],
    ["2001:db8::1", "2001:db8::ff", "2001:db8:0:1::"],
    ["::1", "::2", "::ffff:192.0.2.1"],
  ])("the queue counts %s and %s as one address, because they share a network, and %s as another", async (a, b, c) => {
    flood(MOST_CHECKS);
    for (const [at, address] of [a, a, b, c].entries()) void check(`${at}`, address);
    await end(4);
    expect(begun.slice(MOST_CHECKS)).toEqual(["0", "3", "1", "2"]);
  });

  it("the queue refuses checks that have waited for 10 s, after which the door closes their connections", async () => {
    flood(MOST_CHECKS);
    const { checks: old } = flood(3);
    clock.ms += 10_000;
    void check("alice", STRANGER);
    await end(1);
    expect(await Promise.all(old)).toEqual([null, null, null]);
    expect(begun.slice(MOST_CHECKS)).toEqual(["alice"]);
  });
});
