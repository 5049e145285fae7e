import { randomUUID } from "node:crypto";
import { approveAll, type CopilotClient, type CopilotSession, type SessionConfig } from "@github/copilot-sdk";
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from "vitest";
import { DoorFleet } from "../door/harness.js";
import { RawClient } from "../door/raw-client.js";
import { eventually } from "../fixtures/eventually.js";
import { killed } from "../fixtures/processes.js";
import { idlesOf, messagesOf } from "../fixtures/sessions/conversations.js";

const WAIT_MS = 60_000;

/** Makes a session id that is new for each attempt of a test, so that a retry finds no earlier turns. */
function fresh(at: DoorFleet, name: string): string {
  const id = `${name}-${randomUUID()}`;
  onTestFinished(async () => {
    at.model.letGo(id);
    await eventually("the end of the test's turns", () => at.door.turns === 0);
  });
  return id;
}

describe.each([
  { isolation: "per-user", members: [] },
  { isolation: "per-user", members: ["ben"] },
  { isolation: "shared", members: [] },
  { isolation: "shared", members: ["ben"] },
] as const)("the front door, with two clients, members $members and $isolation servers,", ({ isolation, members }) => {
  let at: DoorFleet;
  let clients: [CopilotClient, CopilotClient];
  const [other = "ann"] = members;
  beforeAll(async () => {
    at = await DoorFleet.open({ config: { isolation, lock: { ttl: "20s" } } });
    clients = [await at.client("ann"), await at.client(other)];
  });
  afterAll(async () => {
    await at[Symbol.asyncDispose]();
  });

  const opened = async (sessionId: string, settings: Partial<SessionConfig> = {}) => {
    const session = await at.fleet.sessions.create({ user: "ann", members: [...members], sessionId });
    await at.fleet.sessions.leave(session);
    const [first, second] = clients.map(async (client) => {
      return await client.resumeSession(sessionId, { onPermissionRequest: approveAll, ...settings });
    });
    return [await first, await second] as [CopilotSession, CopilotSession];
  };
  const say = async (session: CopilotSession, prompt: string) =>
    (await session.sendAndWait(prompt, WAIT_MS))?.data.content;
  /** Sends a prompt whose answer the model holds back, and resolves when its turn has begun. */
  const hold = async (session: CopilotSession, name: string) => {
    const begun = new Promise((resolve) => session.on("user.message", resolve));
    const answer = say(session, `!hold ${name} one`);
    await begun;
    return { answer, reply: `you said: !hold ${name} one` };
  };

  it.each([{ streaming: true }, { streaming: false }])(
    "gives each of two clients of a session its own answer, and all messages (streaming: $streaming)",
    async ({ streaming }) => {
      const id = fresh(at, `own-${streaming}`);
      const [first, second] = await opened(id, { streaming });
      const messages = [messagesOf(first), messagesOf(second)];
      const { answer: one, reply } = await hold(first, id);
      const two = say(second, "two");
      await eventually("the second prompt", () => at.door.turns === 2);
      at.model.letGo(id);
      expect(await Promise.all([one, two])).toEqual([reply, "you said: two"]);
      await eventually("all messages at both", () => messages.every(({ length }) => length === 2));
      expect(messages).toEqual([
        [reply, "you said: two"],
        [reply, "you said: two"],
      ]);
    },
  );

  it("gives each of two clients of a session its own answer while the library also runs a turn in it", async () => {
    const id = fresh(at, "library");
    const [first, second] = await opened(id);
    const { answer: one, reply } = await hold(first, id);
    const two = at.fleet.sessions.use(id, "two", { user: other });
    const three = say(second, "three");
    await eventually("the third prompt", () => at.door.turns === 2);
    at.model.letGo(id);
    expect(await one).toBe(reply);
    expect((await two).text).toBe("you said: two");
    expect(await three).toBe("you said: three");
  });

  it("sends a client that only listens exactly one session.idle for each turn", async () => {
    const id = fresh(at, "listens");
    const [first, second] = await opened(id);
    await say(second, "zero");
    const idles = idlesOf(second);
    for (const prompt of ["one", "two", "three"]) await say(first, prompt);
    await eventually("three ends", () => idles.count >= 3);
    expect(idles.count).toBe(3);
  });

  it("runs a client's waiting prompt after the server dies during another client's turn", async () => {
    const id = fresh(at, "killed");
    const [first, second] = await opened(id);
    await say(first, "zero");
    const { answer: one } = await hold(first, id);
    const failed = expect(one).rejects.toThrow(/ended during the turn/);
    const two = say(second, "two");
    await eventually("the second prompt", () => at.door.turns === 2);
    const { serverId } = (await at.store.sessions.read(id)) ?? { serverId: "" };
    await killed((await at.fleet.servers.list()).find((server) => server.id === serverId)?.pid ?? null);
    await failed;
    expect(await two).toBe("you said: two");
  });
});

describe("the front door, with a client whose prompt waits,", () => {
  let at: DoorFleet;
  beforeAll(async () => {
    at = await DoorFleet.open();
  });
  afterAll(async () => {
    await at[Symbol.asyncDispose]();
  });

  const joined = async (sessionId: string) => {
    const client = await RawClient.as(at.url, await at.token("ann"));
    expect(await client.request("session.resume", { sessionId })).toMatchObject({ result: { sessionId } });
    return client;
  };
  const pair = async (sessionId: string) => {
    await at.fleet.sessions.leave(await at.fleet.sessions.create({ user: "ann", sessionId }));
    return [await joined(sessionId), await joined(sessionId)] as const;
  };
  const question = /^fleet-read-/;
  const questions = ({ received }: RawClient) =>
    received.filter(({ id, method }) => method && question.test(String(id)));
  /** Answers the front door's questions, as every SDK does, to show that the client has read everything before them. */
  const read = (client: RawClient) => {
    for (const { id } of questions(client)) client.send({ id, error: { code: -32601, message: "unknown" } });
  };
  const isIdle = ({ params }: { params?: { event?: unknown } }) =>
    (params?.event as { type?: string } | undefined)?.type === "session.idle";
  /** The ends of turns and the answer to this request, in the order in which the client received them. */
  const order = ({ received }: RawClient, answerTo: number) =>
    received.flatMap((message) => (isIdle(message) ? ["idle"] : message.id === answerTo ? ["answer"] : []));

  it("sends a client the end of another client's turn before it refuses the client's own waiting prompt", async () => {
    const id = fresh(at, "refused");
    const [ann, ben] = await pair(id);
    read(ben);
    await ann.requestOk("session.send", { sessionId: id, prompt: `!hold ${id} a` });
    await eventually("the first turn", () => ann.events(id).includes("user.message"));
    // Because of this lease, the prompt still waits when the turn is over.
    const lease = await at.fleet.leases.acquire(id, { user: "ann" });
    ben.send({ id: 1, method: "session.send", params: { sessionId: id, prompt: "b" } });
    await eventually("the second prompt", () => at.door.turns === 2);
    at.model.letGo(id);
    await eventually("the end of the first turn", () => ann.events(id).includes("session.idle"));
    // The server has sent the end of that turn on the connection of each client. On ben's connection, the answer to
    // this ping comes later, so the door has received the end of the turn and held it back.
    await ben.requestOk("ping");
    expect(order(ben, 1)).toEqual([]);
    expect(await ben.request("session.abort", { sessionId: id })).toMatchObject({ result: { success: true } });
    expect(order(ben, 1)).toEqual(["idle", "answer"]);
    await lease.release();
    // Ben's client has not shown that it has read the end of ann's turn. So the door answers ben's next prompt only
    // after that prompt's own turn.
    ben.send({ id: 2, method: "session.send", params: { sessionId: id, prompt: "c" } });
    await ben.answerTo(2);
    expect(order(ben, 2)).toEqual(["idle", "idle", "answer"]);
  });

  it("answers a prompt only after its own turn if the client sent it just as another client's turn ended", async () => {
    const id = fresh(at, "crossed");
    const [ann, ben] = await pair(id);
    await ann.turnOk(id, "one");
    // Answer the first question. From then on, the front door knows that this client answers questions.
    await eventually("the first question", () => questions(ben).length > 0);
    read(ben);
    await ben.requestOk("ping");
    await ann.turnOk(id, "two");
    await eventually("its end at the other client", () => ben.events(id).filter(isEnd).length === 2);
    ben.send({ id: 1, method: "session.send", params: { sessionId: id, prompt: "three" } });
    await ben.answerTo(1);
    expect(order(ben, 1)).toEqual(["idle", "idle", "idle", "answer"]);
    // Now the client shows that it has read everything. Its next prompt cannot have crossed the end of another turn, so
    // the door answers it at once.
    read(ben);
    await ben.requestOk("session.send", { sessionId: id, prompt: `!hold ${id} four` });
    at.model.letGo(id);
    await eventually("the end of the last turn", () => at.door.turns === 0);
  });

  it("answers a client's first prompt only after its own turn if another client's turn has just ended", async () => {
    const id = fresh(at, "first");
    const [ann] = await pair(id);
    await ann.requestOk("session.send", { sessionId: id, prompt: `!hold ${id} one` });
    await eventually("the turn", () => ann.events(id).includes("user.message"));
    const ben = await joined(id);
    read(ben);
    await ben.requestOk("ping");
    at.model.letGo(id);
    await eventually("its end at the other client", () => ben.events(id).includes("session.idle"));
    ben.send({ id: 1, method: "session.send", params: { sessionId: id, prompt: "two" } });
    await ben.answerTo(1);
    expect(order(ben, 1)).toEqual(["idle", "idle", "answer"]);
  });

  it("fails an aborted prompt with FLEET_TURN_FAILED if its client sent it before reading another turn's end", async () => {
    const id = fresh(at, "aborted");
    const [ann, ben] = await pair(id);
    await ann.turnOk(id, "one");
    await eventually("the first question", () => questions(ben).length > 0);
    read(ben);
    await ben.requestOk("ping");
    await ann.turnOk(id, "two");
    await eventually("its end at the other client", () => ben.events(id).filter(isEnd).length === 2);
    ben.send({ id: 1, method: "session.send", params: { sessionId: id, prompt: `!hold ${id} three` } });
    await eventually("its turn", () => ben.events(id).filter((type) => type === "user.message").length === 3);
    await ben.requestOk("session.abort", { sessionId: id });
    // The client's SDK would take the last message for the answer, but that message answers another prompt.
    expect(await ben.answerTo(1)).toMatchObject({ error: { data: { code: "FLEET_TURN_FAILED" } } });
  });
});

function isEnd(type: string): boolean {
  return type === "session.idle";
}
