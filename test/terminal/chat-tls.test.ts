import { createHash } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from "vitest";
import { ChatTerminal, CTRL_C } from "../fixtures/commands/chat.js";
import { TestFleet } from "../fixtures/commands/cli.js";
import { Terminal } from "../fixtures/commands/terminal.js";
import { eventually } from "../fixtures/eventually.js";
import { type Serving, serve } from "../fixtures/fleets/serve.js";
import { type ScriptedModel, startScriptedModel } from "../fixtures/models/scripted-model.js";
import { CertificateFiles, TestAuthority } from "../fixtures/tls/authority.js";

const authority = new TestAuthority();
const clients = new TestAuthority("clients");
let model: ScriptedModel;
let fleet: TestFleet;
let serving: Serving;
let door: string;
let token: string;
/** A state folder like the one on a user's own machine, where no fleet runs. */
let laptop: TestFleet;
/** The file with the front door's certificate authority, and the files with the client's own certificate and key. */
let ca: string;
let own: CertificateFiles;

beforeAll(async () => {
  model = await startScriptedModel();
  fleet = new TestFleet({
    COPILOTFLEET_PROVIDER_TYPE: "openai",
    COPILOTFLEET_PROVIDER_BASE_URL: model.baseUrl,
  });
  laptop = new TestFleet({ COPILOTFLEET_PROVIDER_TYPE: undefined });
  const { cert, key } = new CertificateFiles(fleet.folder, authority.issue(), "door");
  const clientCa = join(fleet.folder, "clients.crt");
  writeFileSync(clientCa, clients.cert);
  ca = join(laptop.folder, "ca.crt");
  writeFileSync(ca, authority.cert);
  own = new CertificateFiles(laptop.folder, clients.issue({ names: ["laptop"] }), "own");
  door = `tls://localhost:${fleet.ports.to}`;
  const env = {
    COPILOTFLEET_SERVE_LISTEN: `127.0.0.1:${fleet.ports.to}`,
    COPILOTFLEET_SERVE_TLS_CERT: cert,
    COPILOTFLEET_SERVE_TLS_KEY: key,
    COPILOTFLEET_SERVE_TLS_CLIENT_CA: clientCa,
  };
  serving = await serve(fleet, { env });
  ({ token } = await fleet.json<{ token: string }>(["token", "issue", "--user", "alice", "--ttl", "1h"]));
});
afterAll(async () => {
  await serving.end();
  await fleet.end();
  await laptop.end();
  await model[Symbol.asyncDispose]();
});

const certificates = () => ["--ca", ca, "--cert", own.cert, "--key", own.key];
const arguments_ = (to: string, files: readonly string[]) => [
  "chat",
  "--to",
  to,
  "--token-env",
  "FLEET_TOKEN",
  ...files,
];
const options = () => ({ columns: 200, env: { FLEET_TOKEN: token } });

describe("a chat at a front door with TLS", () => {
  it("chat --to tls:// presents a client certificate, runs a turn, and prints the command that continues the session", async () => {
    await using first = await ChatTerminal.open(laptop, arguments_(door, certificates()), options());
    await first.statusShows(new RegExp(`^model \\S+ · front door ${door} · session [0-9a-f-]{36}$`));
    expect(await first.send("hello", /you said: hello/)).not.toContain(token);
    const id = /session ([0-9a-f-]{36})/.exec((await first.rows()).join(" "))?.[1] ?? "";
    expect(await fleet.json(["list", "--user", "alice"])).toMatchObject({ sessions: [{ id, owner: "alice" }] });
    first.type("!hold tls\r");
    await eventually("the turn", () => model.shown("!hold tls") > 0);
    first.type(CTRL_C);
    await first.waits(/The turn was cancelled\./);
    first.type("/exit\r");
    expect(await first.done).toBe(0);
    const files = `--ca ${ca} --cert ${own.cert} --key ${own.key}`;
    expect((await first.rows()).join("")).toContain(
      `copilotfleet chat ${id} --to ${door} --token-env FLEET_TOKEN ${files}`,
    );
    await using again = await ChatTerminal.open(
      laptop,
      ["chat", id, ...arguments_(door, certificates()).slice(1)],
      options(),
    );
    await again.waits(/> hello\n\nyou said: hello/);
  });

  it("after the front door's certificate is replaced, an open chat goes on, and a new chat can connect", async () => {
    await using terminal = await ChatTerminal.open(laptop, arguments_(door, certificates()), options());
    await terminal.send("one", /you said: one/);
    new CertificateFiles(fleet.folder, authority.issue(), "door");
    await serving.logged(/certificate-replaced/);
    await terminal.send("two", /you said: two/);
    await using next = await ChatTerminal.open(laptop, arguments_(door, certificates()), options());
    await next.send("three", /you said: three/);
  });

  it("chat --to tls:// reports a front door's bad certificate or missing TLS, and sends no token", async () => {
    const others = join(laptop.folder, "others.crt");
    writeFileSync(others, new TestAuthority("others").cert);
    const seen: Buffer[] = [];
    const plain = createServer((socket) => {
      socket
        .on("error", () => undefined)
        .on("data", (bytes) => {
          seen.push(bytes);
          socket.end("Content-Length: 2\r\n\r\n{}");
        });
    });
    await new Promise<void>((resolve) => plain.listen(0, "127.0.0.1", resolve));
    onTestFinished(() => void plain.close());
    const { port } = plain.address() as { port: number };
    const pair = ["--cert", own.cert, "--key", own.key];
    const from = serving.log().length;
    const refusals: [string, string[], RegExp][] = [
      [door, pair, /cannot be used: .*certificate/],
      [door, ["--ca", others, ...pair], /cannot be used: .*certificate/],
      [door.replace("localhost", "127.0.0.2"), ["--ca", ca, ...pair], /cannot be used: .*(?:altnames|ECONNREFUSED)/],
      [`tls://127.0.0.1:${port}`, ["--ca", ca], /cannot be used: /],
    ];
    for (const [to, files, reason] of refusals) {
      const refused = new Terminal(laptop, arguments_(to, files), options());
      expect(await refused.done, to).toBe(7);
      expect(refused.text).toMatch(reason);
      expect(refused.text).toContain("[FLEET_SERVER_UNREACHABLE]");
      expect(refused.text).not.toContain(token);
    }
    expect(Buffer.concat(seen).length).toBeGreaterThan(0);
    expect(Buffer.concat(seen).toString("latin1")).not.toContain(token);
    expect(
      serving
        .log()
        .slice(from)
        .filter(({ event }) => event === "connected"),
    ).toEqual([]);
  });

  it("chat --to without a client certificate is refused, even though its token is valid", async () => {
    const refused = new Terminal(laptop, arguments_(door, ["--ca", ca]), options());
    expect(await refused.done).toBe(7);
    expect(refused.text).toMatch(/The front door at \S+ cannot be used: .*\[FLEET_SERVER_UNREACHABLE\]/s);
  });

  it("chat --to without TLS warns that others can read its token, unless the front door is local", async () => {
    const ends = async (to: string, files: readonly string[] = []) => {
      const terminal = new Terminal(laptop, arguments_(to, files), options());
      expect(await terminal.done, to).toBe(7);
      return terminal.text;
    };
    const warning = "Warning: Others on the network can read the token on its way to fleet.invalid:4300.";
    expect(await ends("fleet.invalid:4300")).toContain(`${warning} If the front door has TLS, write --to tls://fleet`);
    for (const to of ["127.0.0.1:9", "localhost:9", "[::1]:9", "tls://fleet.invalid:4300"])
      expect(await ends(to)).not.toContain("Warning");
    expect(await ends("fleet.invalid:4300", ["--ca", ca])).not.toContain("Warning");
  });

  it("the files of a chat on the user's machine contain neither the token, nor its digest, nor the private key", () => {
    const digest = createHash("sha256").update(token).digest("hex").slice(0, 16);
    const secret = readFileSync(own.key, "utf8").split("\n")[1] ?? "";
    for (const name of readdirSync(join(laptop.root, "chat"))) {
      const text = `${name}\n${readFileSync(join(laptop.root, "chat", name), "utf8")}`;
      for (const part of [token, digest, secret]) expect(text).not.toContain(part);
    }
  });
});
