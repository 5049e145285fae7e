/**
 * Measures the cost of TLS at the front door. Two front doors of one fleet run as separate processes, one of them with TLS. The
 * same clients use both in one run: one client for the turns, and many that stream at the same time.
 *
 * Run: npx tsx bench/tls.ts [turns clients sessions words rounds]
 */
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { Fleet } from "../src/index.js";
import { type Endpoint, RpcClient } from "../src/runtime/wire/rpc-client.js";
import { CertificateFiles, TestAuthority } from "../test/fixtures/tls/authority.js";
import { startPart } from "./gateway/processes.js";
import { claim, compare, printMachine, ratio, withState } from "./measure.js";

const LIMIT_MS = 10 * 60 * 1000;
const CONNECT_MS = 60_000;
const [turns = 60, clients = 20, sessions = 5, words = 100, rounds = 10] = process.argv.slice(2).map(Number);

/** A client that takes turns in its sessions, and counts the pieces of the replies. */
class TurnClient {
  deltas = 0;
  readonly #rpc: RpcClient;
  readonly #idle = new Map<string, () => void>();

  private constructor(rpc: RpcClient) {
    this.#rpc = rpc;
  }

  static async open(endpoint: Endpoint): Promise<TurnClient> {
    let client: TurnClient | undefined;
    const listener = {
      isIdle: false,
      onFrame: (_: unknown, { body }: { body: Buffer }) => client?.take(body),
      onDrain: () => undefined,
      onFault: (error: unknown) => console.error(error),
      onClosed: () => undefined,
    };
    const dialled = await RpcClient.dial(endpoint, { hello: {}, listener }, AbortSignal.timeout(CONNECT_MS));
    client = new TurnClient(dialled.client);
    return client;
  }

  async create(sessionId: string): Promise<void> {
    await this.#rpc.request("session.create", { sessionId, streaming: true });
  }

  async turn(sessionId: string, prompt: string): Promise<void> {
    const idle = new Promise<void>((resolve) => this.#idle.set(sessionId, resolve));
    await this.#rpc.request("session.send", { sessionId, prompt });
    await idle;
  }

  take(body: Buffer): void {
    const { params } = JSON.parse(body.toString()) as { params?: { sessionId?: string; event?: { type: string } } };
    if (params?.event?.type === "assistant.message_delta") this.deltas++;
    if (params?.event?.type === "session.idle") this.#idle.get(params.sessionId ?? "")?.();
  }

  close(): void {
    this.#rpc.destroy();
  }
}

async function crowd(name: string, endpoint: Endpoint) {
  const members = [];
  for (let index = 0; index < clients; index++) {
    const client = await TurnClient.open(endpoint);
    const ids = Array.from({ length: sessions }, (_, session) => `${name}-${index}-${session}`);
    for (const id of ids) await client.create(id);
    members.push({ client, ids });
  }
  return members;
}

printMachine();
await withState(
  async (base, folder) => {
    using model = await startPart(["model"]);
    const env = {
      ...base,
      COPILOTFLEET_PROVIDER_TYPE: "openai",
      COPILOTFLEET_PROVIDER_BASE_URL: model.url,
      COPILOTFLEET_SESSION_MAX_ACTIVE: "5000",
      COPILOTFLEET_LIMITS_DEFAULT_CONNECTIONS: "null",
    };
    const authority = new TestAuthority();
    const { cert, key } = new CertificateFiles(folder, authority.issue());
    await writeFile(join(folder, "ca.crt"), authority.cert);
    await using fleet = await Fleet.open({ env, cwd: folder });
    const { token } = await fleet.tokens.issue("bench");
    using plainDoor = await startPart(["door"], env);
    using tlsDoor = await startPart(["door"], {
      ...env,
      COPILOTFLEET_SERVE_TLS_CERT: cert,
      COPILOTFLEET_SERVE_TLS_KEY: key,
    });
    const endpointOf = (url: string): Endpoint => ({ address: "127.0.0.1", port: Number(url.split(":")[1]), token });
    const [plain, tls] = [endpointOf(plainDoor.url), { ...endpointOf(tlsDoor.url), tls: { ca: authority.cert } }];

    const [without, withTls] = [await TurnClient.open(plain), await TurnClient.open(tls)];
    await without.create("without");
    await withTls.create("with");
    const medians = await compare(turns, [
      { name: "turn without TLS", round: async () => await without.turn("without", "hello").then(() => undefined) },
      { name: "turn with TLS", round: async () => await withTls.turn("with", "hello").then(() => undefined) },
    ]);
    claim("turn, with TLS to without", ratio(medians, "turn with TLS", "turn without TLS"), 1.15);

    const prompt = Array.from({ length: words }, (_, index) => `w${index}`).join(" ");
    const crowds = { without: await crowd("without", plain), with: await crowd("with", tls) };
    const stream = async (members: (typeof crowds)["with"]) => {
      const before = members.reduce((sum, { client }) => sum + client.deltas, 0);
      const start = performance.now();
      await Promise.all(members.flatMap(({ client, ids }) => ids.map(async (id) => await client.turn(id, prompt))));
      const ms = performance.now() - start;
      const deltas = members.reduce((sum, { client }) => sum + client.deltas, 0) - before;
      // An answer consists of "[turn N]", which is two words, and the words of the prompt.
      if (deltas !== clients * sessions * (words + 2)) throw new Error(`${deltas} deltas have come`);
      return ms;
    };
    const streams = await compare(rounds, [
      { name: `${clients * sessions} streams without TLS`, round: async () => await stream(crowds.without) },
      { name: `${clients * sessions} streams with TLS`, round: async () => await stream(crowds.with) },
    ]);
    const [slow = 0, fast = 0] = [...streams.values()].toReversed();
    claim("streaming, time with TLS to without", slow / fast, 1 / 0.9);
    for (const client of [without, withTls]) client.close();
    for (const { client } of [...crowds.without, ...crowds.with]) client.close();
  },
  { limitMs: LIMIT_MS },
);
