import { type AddressInfo, createServer } from "node:net";
import { afterEach, describe, expect, it, onTestFinished, vi } from "vitest";
import { Attempts } from "../../src/door/entry/connection.js";
import { eventually } from "../fixtures/eventually.js";
import { TestClock } from "../fixtures/fleets/test-clock.js";
import { Stopwatch } from "../fixtures/stopwatch.js";
import { DoorFleet } from "./harness.js";
import { RawClient } from "./raw-client.js";

const REFUSED = { code: -32002, message: "AUTHENTICATION_FAILED" };

describe("the front door, for a good token,", () => {
  it("accepts a good token while clients at the same address try wrong tokens with this and other ids", async () => {
    await using at = await DoorFleet.open();
    const token = await at.token("alice");
    (await RawClient.as(at.url, token)).socket.destroy();
    const wrong = (index: number) =>
      [
        `${token.slice(0, -1)}${token.endsWith("A") ? "B" : "A"}`,
        `cft_${String(index).padStart(16, "0")}${token.slice(20)}`,
        "wrong",
      ][index % 3];
    const guessers = await Promise.all(
      Array.from({ length: 15 }, async (_, index) => {
        const guesser = await RawClient.open(at.url);
        guesser.send({ id: 1, method: "connect", params: { token: wrong(index) } });
        return guesser;
      }),
    );
    const refused = () => at.events.filter(({ event }) => event === "token-refused").length;
    await eventually("the wrong tokens", () => refused() === guessers.length);
    for (let login = 0; login < 10; login++) {
      const client = await RawClient.as(at.url, token);
      expect((await client.request("ping")).error).toBeUndefined();
      client.socket.destroy();
    }
    for (const guesser of guessers.slice(0, 6)) expect((await guesser.answerTo(1)).error).toEqual(REFUSED);
  });

  it("accepts a good token within a second despite 2,048 silent connections, and closes the oldest ones", async () => {
    // The clock stands still, so that no connection reaches its time limit.
    await using at = await DoorFleet.open({ clock: new TestClock() });
    const token = await at.token("alice");
    const first = await RawClient.as(at.url, token);
    const strangers: RawClient[] = [];
    for (let round = 0; round < 16; round++) {
      strangers.push(...(await Promise.all(Array.from({ length: 128 }, async () => await RawClient.open(at.url)))));
    }
    // Connections are accepted in order, so this one is answered after all others were accepted.
    const last = await RawClient.open(at.url);
    last.send({ id: 1, method: "ping" });
    await last.answerTo(1);
    expect(strangers.filter(({ closed }) => closed).length).toBeLessThanOrEqual(1);
    using watch = new Stopwatch();
    for (let login = 0; login < 5; login++)
      expect((await (await RawClient.as(at.url, token)).request("ping")).error).toBeUndefined();
    expect(watch.ms).toBeLessThan(1_000);
    // The door has hung up on `last`, so there is room for one more.
    await RawClient.open(at.url);
    for (let closed = 2; closed <= 4; closed++) {
      await RawClient.open(at.url);
      await eventually("the end of the oldest", () => strangers.filter((each) => each.closed).length === closed);
      expect(strangers.findIndex((each) => !each.closed)).toBe(closed);
    }
    // The very first connection stays, because it has shown its token.
    expect((await first.request("ping")).error).toBeUndefined();
  });
});

describe("the front door, for a connection that has not shown its token so far,", () => {
  it("lets a new client sign on while strangers fill the front door with tokens that take long to check", async () => {
    const silent = createServer((socket) => void socket.on("error", () => undefined));
    await new Promise<void>((resolve) => silent.listen(0, "127.0.0.1", resolve));
    onTestFinished(() => void silent.close());
    const api = `http://127.0.0.1:${(silent.address() as AddressInfo).port}`;
    await using at = await DoorFleet.open({ config: { provider: null, identity: { github: { api } } } });
    const token = await at.token("alice");
    const strange = async () => {
      const stranger = await RawClient.open(at.url);
      stranger.send({ id: 1, method: "connect", params: { token: "gho_wrong" } });
      return stranger;
    };
    const strangers: RawClient[] = [];
    for (let round = 0; round < 16; round++)
      strangers.push(...(await Promise.all(Array.from({ length: 128 }, strange))));
    const client = await RawClient.open(at.url);
    for (let count = 0; count < 10; count++) await strange();
    await client.signedOn(token);
    expect(strangers.filter(({ closed }) => closed).length).toBeGreaterThan(0);
    for (const { socket } of strangers) socket.destroy();
  });
});

describe("the front door, for a wrong token,", () => {
  afterEach(() => {
    vi.useRealTimers();
  });

  const answered = async (attempts: Attempts, id: string | undefined, ms: number) => {
    let isAnswered = false;
    void attempts.failed(id).then(() => {
      isAnswered = true;
    });
    await vi.advanceTimersByTimeAsync(ms - 1);
    const early = isAnswered;
    await vi.advanceTimersByTimeAsync(1);
    return { early, late: !isAnswered };
  };
  const ON_TIME = { early: false, late: false };

  it("doubles the delay for each further wrong token with the same id, up to 8 s, and shortens it after a pause", async () => {
    vi.useFakeTimers();
    const attempts = new Attempts({ now: () => 0 });
    for (const ms of [250, 500, 1_000, 2_000, 4_000, 8_000, 8_000])
      expect(await answered(attempts, "a", ms)).toEqual(ON_TIME);
    expect(await answered(attempts, "b", 250)).toEqual(ON_TIME);
    for (let count = 0; count < 3; count++) expect(await answered(attempts, undefined, 250)).toEqual(ON_TIME);
    let now = 0;
    const forgiving = new Attempts({ now: () => now });
    for (const ms of [250, 500, 1_000]) expect(await answered(forgiving, "a", ms)).toEqual(ON_TIME);
    now += 20_000;
    expect(await answered(forgiving, "a", 500)).toEqual(ON_TIME);
  });

  it("sends the oldest delayed answer at once when the answers to more than 256 wrong tokens are delayed", async () => {
    const attempts = new Attempts({ now: () => 0 });
    const given: number[] = [];
    const failed = (index: number) => void attempts.failed("a").then(() => given.push(index));
    vi.useFakeTimers();
    for (let index = 0; index < 258; index++) failed(index);
    await vi.advanceTimersByTimeAsync(0);
    expect(given).toEqual([0, 1]);
  });
});
