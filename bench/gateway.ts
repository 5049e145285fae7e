/**
 * What the front door costs, and what it gains: the unmodified SDK through it against the same SDK at the server itself, and
 * against the best direct client (no Nagle delays, acknowledgements); streaming of many sessions at once; memory per idle
 * connection. The door is a process of its own. Run: npx tsx bench/gateway.ts [clients sessions-per-client]
 */
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { fileURLToPath } from "node:url";
import { CopilotClient, RuntimeConnection } from "@github/copilot-sdk";
import { Fleet } from "../src/index.js";
import { startEchoModel } from "../src/models/echo.js";
import { connectClient } from "../src/runtime/client/connect.js";
import { encodeFrame, FrameDecoder } from "../src/runtime/client/frames.js";
import { claim, compare, printMachine, ratio, withState } from "./measure.js";

/** One server takes 128 connections at a time (measured with runtime 1.0.85), and every client has one to it. */
const [clients = 40, perClient = 5] = process.argv.slice(2).map(Number);
const WORDS = 300;
const IDLE = 100;

async function crowd(url: string, token: string, name: string, config: object) {
  const members = await Promise.all(
    Array.from({ length: clients }, async (_, index) => {
      const client = await Raw.connect(url, token);
      const ids = Array.from({ length: perClient }, (_unused, at) => `${name}-${index}-${at}`);
      for (const sessionId of ids) await client.request("session.create", { sessionId, ...config });
      return { client, ids };
    }),
  );
  const prompt = Array.from({ length: WORDS }, (_, index) => `w${index}`).join(" ");
  return {
    stream: async () => {
      const start = performance.now();
      await Promise.all(members.flatMap(({ client, ids }) => ids.map(async (id) => await client.turn(id, prompt))));
      return performance.now() - start;
    },
    end: () => {
      for (const { client } of members) client.end();
    },
  };
}

/** A client that costs as little as possible, so that what is measured is the rest. */
class Raw {
  readonly #socket: Socket;
  readonly #waiting = new Map<string | number, (message: { error?: unknown }) => void>();
  #sequence = 0;

  private constructor(socket: Socket) {
    this.#socket = socket;
    const decoder = new FrameDecoder();
    socket.on("data", (chunk) => {
      socket.write(encodeFrame({ jsonrpc: "2.0", method: "$/ack" }));
      for (const message of decoder.push(chunk)) this.#take(message as Message);
    });
  }

  static async connect(url: string, token: string): Promise<Raw> {
    const [host = "", port = ""] = url.split(":");
    const client = new Raw(connect({ host, port: Number(port), noDelay: true }));
    await client.request("connect", { token, supportedTaskKinds: [] });
    return client;
  }

  #take(message: Message): void {
    const idle = message.params?.event?.type === "session.idle" ? message.params.sessionId : undefined;
    const key = idle ?? message.id;
    if (key === undefined) return;
    const done = this.#waiting.get(key);
    this.#waiting.delete(key);
    done?.(message);
  }

  async request(method: string, params: object): Promise<void> {
    const id = this.#sequence++;
    const answer = new Promise<{ error?: unknown }>((resolve) => this.#waiting.set(id, resolve));
    this.#socket.write(encodeFrame({ jsonrpc: "2.0", id, method, params }));
    const { error } = await answer;
    if (error !== undefined) throw new Error(`${method}: ${JSON.stringify(error)}`);
  }

  async turn(sessionId: string, prompt: string): Promise<void> {
    const idle = new Promise<unknown>((resolve) => this.#waiting.set(sessionId, resolve));
    await this.request("session.send", { sessionId, prompt });
    await idle;
  }

  end(): void {
    this.#socket.destroy();
  }
}

interface Message {
  id?: number;
  error?: unknown;
  params?: { sessionId?: string; event?: { type?: string } };
}

async function startDoor(env: NodeJS.ProcessEnv) {
  const script = fileURLToPath(new URL("gateway-door.ts", import.meta.url));
  const child = spawn(process.execPath, ["--import", "tsx", script], { env, stdio: ["pipe", "pipe", "inherit"] });
  const first = await new Promise<string>((resolve, reject) => {
    child.once("error", reject);
    child.stdout.once("data", (chunk: Buffer) => resolve(chunk.toString()));
  });
  const { port } = JSON.parse(first) as { port: number };
  return { url: `127.0.0.1:${port}`, pid: child.pid ?? 0, end: () => child.stdin.end() };
}

function residentBytes(pid: number): number {
  return Number(/^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]) * 1024;
}

printMachine();
await withState(async (base, folder) => {
  const model = await startEchoModel();
  const env = {
    ...base,
    COPILOTFLEET_PROVIDER_TYPE: "openai",
    COPILOTFLEET_PROVIDER_BASE_URL: model.baseUrl,
    COPILOTFLEET_SESSION_MAX_ACTIVE: "5000",
  };
  await using fleet = await Fleet.open({ env, cwd: folder });
  await fleet.spawn("bench");
  const { url, token } = await fleet.connectInfo("bench");
  const provider = { type: "openai", wireApi: "completions", baseUrl: model.baseUrl } as const;
  const door = await startDoor(env);
  const userToken = (await fleet.issueToken("bench")).token;

  const sdk = async (where: string, connectionToken: string) => {
    const client = new CopilotClient({ connection: RuntimeConnection.forUri(where, { connectionToken }) });
    await client.start();
    return client;
  };
  const plain = await sdk(url, token);
  const through = await sdk(door.url, userToken);
  const [address = "", port = ""] = url.split(":");
  const best = (await connectClient({ address, port: Number(port), token }, {}, AbortSignal.timeout(10_000))).client;
  const config = { model: "gpt-5", provider, streaming: true };
  const sessions = {
    plain: await plain.createSession({ ...config, sessionId: "plain" }),
    through: await through.createSession({ streaming: true, sessionId: "through" }),
    best: await best.createSession({ ...config, sessionId: "best" }),
  };
  const medians = await compare(60, [
    { name: "ping, SDK directly", round: async () => void (await plain.ping()) },
    { name: "ping, SDK through the door", round: async () => void (await through.ping()) },
    { name: "ping, best direct client", round: async () => void (await best.ping()) },
    { name: "turn, SDK directly", round: async () => void (await sessions.plain.sendAndWait("hello")) },
    { name: "turn, SDK through the door", round: async () => void (await sessions.through.sendAndWait("hello")) },
    { name: "turn, best direct client", round: async () => void (await sessions.best.sendAndWait("hello")) },
  ]);
  claim("ping, door to SDK directly", ratio(medians, "ping, SDK through the door", "ping, SDK directly"), 0.05);
  claim("turn, door to SDK directly", ratio(medians, "turn, SDK through the door", "turn, SDK directly"), 0.25);
  claim(
    "turn, door to best direct client",
    ratio(medians, "turn, SDK through the door", "turn, best direct client"),
    1.3,
  );
  for (const client of [plain, through, best]) await client.forceStop();

  const direct = await crowd(url, token, "direct", { ...config });
  const guests = await crowd(door.url, userToken, "guest", { streaming: true });
  const streams = await compare(5, [
    { name: `${clients * perClient} streams, directly`, round: async () => await direct.stream() },
    { name: `${clients * perClient} streams, through the door`, round: async () => await guests.stream() },
  ]);
  const [directly = 0, throughDoor = 0] = [...streams.values()];
  claim("streaming, time through the door to directly", throughDoor / directly, 1 / 0.9);
  direct.end();
  guests.end();
  // Or they would count as cut when the server is stopped.
  while ((await fleet.serverOf("bench")).activeSessions > 0) await new Promise((resolve) => setTimeout(resolve, 100));

  const before = residentBytes(door.pid);
  const idle = await Promise.all(Array.from({ length: IDLE }, async () => await Raw.connect(door.url, userToken)));
  const perConnection = (residentBytes(door.pid) - before) / IDLE;
  claim(`memory per idle connection in kB`, perConnection / 1024, 64);
  for (const client of idle) client.end();
  door.end();
  await model.close();
});
