import { type ChildProcess, execFileSync, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { chmodSync, chownSync, existsSync, mkdtempSync, readFileSync, readlinkSync } from "node:fs";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { buffer, text } from "node:stream/consumers";
import { fileURLToPath } from "node:url";
import { afterAll, expect, it, onTestFinished } from "vitest";
import { eventually } from "../fixtures/eventually.js";
import { isRunning } from "../fixtures/processes.js";
import { reachableNode } from "../fixtures/programs/reachable-node.js";
import { removeFolder } from "../fixtures/remove-folder.js";

const PROGRAM = fileURLToPath(new URL(`../../native/linux-${process.arch}/copilotfleet-network`, import.meta.url));
const LAUNCHER = fileURLToPath(new URL(`../../native/linux-${process.arch}/copilotfleet-sandbox`, import.meta.url));
const INSIDE = fileURLToPath(new URL("../fixtures/programs/inside.mjs", import.meta.url));
const LAUNCH = "d2a45f5c-1b0e-4d3c-9a55-6c0f6f0a1234";
const env = { PATH: process.env.PATH, COPILOTFLEET_LAUNCH_ID: LAUNCH };
/** The port in the namespace for connections to the outside. */
const WAY_OUT = 3128;
/** How many connections the bridge passes on at once in each direction. */
const MOST = 512;

type Account = "root" | "an ordinary user";
const under = (account: Account) =>
  account === "root" || process.getuid?.() !== 0
    ? []
    : ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];

const trial = (account: Account) => {
  const args = [...under(account), PROGRAM, "--port", "0", "--sockets", "/", "--", "/bin/true"];
  const { status, stderr } = spawnSync(args[0] ?? "", args.slice(1), { encoding: "utf8" });
  return status === 0 ? undefined : stderr;
};
const ACCOUNTS = (process.getuid?.() === 0 ? (["root", "an ordinary user"] as const) : (["an ordinary user"] as const))
  .map((account) => ({ account, problem: trial(account) }))
  .filter(({ account, problem }) => {
    if (problem !== undefined) console.warn(`the tests of network namespaces of ${account} are skipped: ${problem}`);
    return problem === undefined;
  })
  .map(({ account }) => account);

let copied: string | undefined;
afterAll(async () => {
  if (copied !== undefined) await removeFolder(copied);
});

/** The path of a Node.js that the account can run. */
function nodeOf(account: Account): string {
  if (under(account).length === 0) return process.execPath;
  if (copied === undefined) {
    copied = mkdtempSync(join(tmpdir(), "copilotfleet-node-"));
    chmodSync(copied, 0o755);
  }
  return existsSync(join(copied, "node")) ? join(copied, "node") : reachableNode(under(account), join(copied, "node"));
}

interface Namespace {
  port: number;
  sockets: string;
  child: ChildProcess;
  bridge: number;
  /** Sends a command to the program in the namespace. */
  ask(command: string): Promise<Socket>;
}

async function enter(
  account: Account,
  options: readonly string[] = [],
  launcher: readonly string[] = [],
): Promise<Namespace> {
  const sockets = mkdtempSync(join(tmpdir(), "copilotfleet-network-"));
  onTestFinished(() => removeFolder(sockets));
  if (process.getuid?.() === 0 && account !== "root") chownSync(sockets, 65534, 65534);
  const port = await freePort();
  const all = [...under(account), PROGRAM, "--port", String(port), "--sockets", sockets, ...options, "--", ...launcher];
  const [program = "", ...args] = [...all, nodeOf(account), INSIDE, String(port)];
  const child = spawn(program, args, { env, stdio: ["ignore", "pipe", "inherit"] });
  onTestFinished(() => void child.kill("SIGKILL"));
  const [data] = (await Promise.race([once(child.stdout ?? child, "data"), once(child, "exit")])) as [unknown];
  if (!(data instanceof Buffer)) throw new Error(`${program} has ended with code ${String(data)}.`);
  const ask = async (command: string) => {
    const socket = connect({ port, host: "127.0.0.1", allowHalfOpen: true });
    onTestFinished(() => void socket.destroy());
    await once(socket, "connect");
    socket.write(`${command}\n`);
    return socket;
  };
  const bridge = Number(execFileSync("pgrep", ["-P", String(child.pid)], { encoding: "utf8" }));
  return { port, sockets, child, bridge, ask };
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, "close");
  return port;
}

async function listen(at: string | number, serve: (client: Socket) => void): Promise<Server> {
  const server = createServer({ allowHalfOpen: true }, (client) => {
    client.on("error", () => client.destroy());
    serve(client);
  });
  if (typeof at === "string") server.listen(at.startsWith("\0") ? at : { path: at, writableAll: true });
  else server.listen(at, "127.0.0.1");
  onTestFinished(() => void server.close());
  await once(server, "listening");
  return server;
}

/** The processor time of a process, in hundredths of a second. */
function ticksOf(pid: number): number {
  const [user, kernel] = readFileSync(`/proc/${pid}/stat`, "utf8").split(" ").slice(13);
  return Number(user) + Number(kernel);
}

const portOf = (server: Server) => (server.address() as AddressInfo).port;

it("copilotfleet-network reports what is wrong with its arguments, and runs nothing", async () => {
  const run = (...args: string[]) => {
    const { status, stderr } = spawnSync(PROGRAM, args, { encoding: "utf8", env: {} });
    return [status, stderr];
  };
  const complete = ["--port", "0", "--sockets", "/"];
  expect(run("--nonsense", "x", "--", "/bin/true")).toEqual([126, "copilotfleet-network: unknown option --nonsense\n"]);
  expect(run("--port")).toEqual([126, "copilotfleet-network: no value for --port\n"]);
  expect(run(...complete, "--")).toEqual([126, "copilotfleet-network: no program\n"]);
  expect(run("--port", "0", "--", "/bin/true")[1]).toContain("--port and --sockets are needed");
  expect(run(...complete, "--egress", "egress", "--", "/bin/true")[1]).toContain("has no COPILOTFLEET_LAUNCH_ID");
  expect(run(...complete, "--egress", "e".repeat(200), "--", "/bin/true")[1]).toContain("too long a name");
});

it.each(ACCOUNTS)("as %s, copilotfleet-network names the step that failed in its error", async (account) => {
  const taken = await listen(0, () => undefined);
  const run = (...args: string[]) => {
    const [program = "", ...rest] = [...under(account), PROGRAM, ...args];
    const { status, stderr } = spawnSync(program, rest, { encoding: "utf8", env });
    return [status, stderr];
  };
  expect(run("--port", String(portOf(taken)), "--sockets", "/", "--", "/bin/true")).toEqual([
    126,
    "copilotfleet-network: address already in use\n",
  ]);
  expect(run("--port", "0", "--sockets", "/nowhere", "--", "/bin/true")).toEqual([
    126,
    "copilotfleet-network: cannot enter /nowhere: error 2\n",
  ]);
  expect(run("--port", "0", "--sockets", "/", "--", "/nowhere")).toEqual([
    126,
    "copilotfleet-network: cannot run /nowhere: error 2\n",
  ]);
});

it.each(ACCOUNTS)("as %s, data passes both ways between the machine and the namespace", async (account) => {
  const { ask } = await enter(account);
  const data = Buffer.alloc(20 * 1024 * 1024, "0123456789abcdef");
  const socket = await ask("echo");
  socket.end(data); // the program still sends everything back after our side has ended
  expect((await buffer(socket)).equals(data)).toBe(true);
});

it.each(ACCOUNTS)(
  "as %s, the program in the namespace reaches only the Unix sockets in the network folder",
  async (account) => {
    const { ask, sockets } = await enter(account, ["--egress", "egress"]);
    const outside = await listen(0, (client) => client.end("reached"));
    const serve = (name: string) => (client: Socket) => {
      let said = "";
      client.on("data", (data) => {
        said += String(data);
      });
      client.once("end", () => client.end(`${name}: ${said}`));
    };
    await listen(join(sockets, "1.2.0"), serve("gateway"));
    await listen(join(sockets, "egress"), serve("egress"));
    const say = async (command: string) => {
      const socket = await ask(command);
      socket.end("hello");
      return await text(socket);
    };
    expect(await say(`connect 127.1.2.0 ${WAY_OUT}`)).toBe("gateway: hello");
    expect(await say(`connect 127.0.0.1 ${WAY_OUT}`)).toBe(`egress: ${LAUNCH}\nhello`);
    expect(await say(`connect 127.9.9.9 ${WAY_OUT}`)).toMatch(/^(ECONNRESET)?$/); // there is no such socket
    expect(await say(`connect ::1 ${WAY_OUT}`)).toBe("ECONNREFUSED");
    expect(await say(`connect 127.0.0.1 ${portOf(outside)}`)).toBe("ECONNREFUSED");
    expect(await say("connect 192.0.2.1 80")).toBe("ENETUNREACH");
  },
);

it("without --egress, a connection from the namespace to 127.0.0.1 reaches nothing", async () => {
  const { ask, sockets } = await enter("root");
  let clients = 0;
  await listen(join(sockets, "egress"), () => clients++);
  expect(await text(await ask(`connect 127.0.0.1 ${WAY_OUT}`))).toBe("");
  expect(clients).toBe(0);
});

it.each(ACCOUNTS)("as %s, the program can open no socket that bypasses its network namespace", async (account) => {
  const name = `copilotfleet-test-${process.pid}`;
  await listen(`\0${name}`, () => undefined);
  const script = `use Socket;
    print socket(S, 40, SOCK_STREAM, 0) ? "" : "vsock: $!\\n";
    socket(U, AF_UNIX, SOCK_STREAM, 0); print ((grep { connect(U, pack("S$_", AF_UNIX, "\\0${name}")) } qw(a* a108)) ? "" : "abstract: $!\\n"); # some versions of Node.js fill the name with zeros
    socket(D, AF_INET, SOCK_DGRAM, 0); print send(D, "x", 0, pack_sockaddr_in(53, inet_aton("192.0.2.1"))) ? "" : "udp: $!\\n";
    print socket(N, 16, SOCK_RAW, 0) ? "netlink\\n" : "";`;
  const run = (around: readonly string[]) => {
    const [program = "", ...args] = [...under(account), ...around, "perl", "-e", script];
    return spawnSync(program, args, { encoding: "utf8" }).stdout;
  };
  const options = [PROGRAM, "--port", "0", "--sockets", "/", "--"];
  expect(run([...options, "/usr/bin/env"])).toBe(
    "vsock: Address family not supported by protocol\nabstract: Connection refused\nudp: Network is unreachable\nnetlink\n",
  );
  expect(run([])).not.toContain("abstract");
});

it("a program under the launcher can neither signal the bridge nor read its memory or files", async () => {
  const { child, bridge } = await enter("root", [], [LAUNCHER, "--read", "/", "--"]);
  const attack = `kill -0 ${bridge} && echo signal; kill -0 -- -${bridge} && echo group; exec 3</proc/${bridge}/mem && echo memory
    ls /proc/${bridge}/fd >/dev/null && echo files; grep -a COPILOT /proc/${bridge}/environ >/dev/null && echo environment`;
  const run = (program: string, args: readonly string[]) => spawnSync(program, args, { encoding: "utf8", env }).stdout;
  expect(run(LAUNCHER, ["--read", "/", "--", "/bin/bash", "-c", attack])).toBe("");
  expect(run("/bin/bash", ["-c", attack])).toBe("signal\ngroup\nmemory\nfiles\nenvironment\n");
  // A signal to the process group of the program does not reach the bridge either.
  expect(readFileSync(`/proc/${bridge}/stat`, "utf8").split(" ")[4]).toBe(String(bridge));
  expect(readlinkSync(`/proc/${bridge}/ns/net`)).toBe(readlinkSync(`/proc/${child.pid}/ns/net`));
});

it.each(ACCOUNTS)("as %s, the bridge has no privileges, and only its own descriptors are open", async (account) => {
  const { bridge } = await enter(account);
  const status = readFileSync(`/proc/${bridge}/status`, "utf8");
  expect(status).toMatch(/^CapPrm:\t0+$/m);
  expect(status).toMatch(/^CapEff:\t0+$/m);
  expect(status).toMatch(/^NoNewPrivs:\t1$/m);
  expect(status).toMatch(/^Seccomp:\t2$/m);
  const open = execFileSync("ls", ["-l", `/proc/${bridge}/fd`], { encoding: "utf8" }).match(/-> .*$/gm);
  expect(open?.map((line) => line.replace(/\d+/, "N"))).toEqual([
    "-> socket:[N]",
    "-> socket:[N]",
    "-> anon_inode:[pidfd]",
  ]);
});

it("if a target reads nothing, its connection accepts limited data, and other connections still work", async () => {
  const { ask, bridge } = await enter("root");
  const silent = await ask("silent");
  const chunk = Buffer.alloc(1024 * 1024);
  let sent = 0;
  let isBlocked = false;
  while (!isBlocked) {
    sent++;
    isBlocked = !(await Promise.race([
      new Promise<boolean>((resolve) => void silent.write(chunk, () => resolve(true))),
      new Promise<boolean>((resolve) => void setTimeout(resolve, 1_000, false)),
    ]));
  }
  expect(sent).toBeLessThan(64);
  for (let round = 0; round < 20; round++) {
    const socket = await ask("echo");
    socket.end("hello");
    expect(await text(socket)).toBe("hello");
  }
  const before = ticksOf(bridge);
  await new Promise((resolve) => setTimeout(resolve, 500));
  expect(ticksOf(bridge) - before, "the bridge does not poll in a circle").toBeLessThan(10);
  expect(Number(/^RssAnon:\s+(\d+)/m.exec(readFileSync(`/proc/${bridge}/status`, "utf8"))?.[1])).toBeLessThan(512);
});

it("when a client disconnects, the bridge closes the connection to the target, and then stays idle", async () => {
  const { ask, sockets, bridge } = await enter("root");
  let closed = 0;
  await listen(join(sockets, "1.2.0"), (client) => {
    client.resume();
    client.once("end", () => closed++);
  });
  for (let index = 0; index < 10; index++) {
    const socket = await ask(`connect 127.1.2.0 ${WAY_OUT}`);
    if (index % 2 === 0) socket.end();
    else setTimeout(() => socket.resetAndDestroy(), 50);
  }
  await eventually("the targets see the end", () => closed === 10);
  const before = ticksOf(bridge);
  await new Promise((resolve) => setTimeout(resolve, 500));
  expect(ticksOf(bridge) - before).toBeLessThan(10);
});

it("a new connection waits while the bridge has as many connections as it may have", async () => {
  const { ask } = await enter("root");
  const clients = await Promise.all(Array.from({ length: MOST }, async () => await ask("echo")));
  const late = await ask("echo");
  late.end("late");
  const answer = text(late);
  const first = await Promise.race([answer, new Promise((resolve) => setTimeout(resolve, 300, "waits"))]);
  expect(first).toBe("waits");
  clients[0]?.destroy();
  expect(await answer).toBe("late");
});

it("when the bridge is full, it closes the oldest connections without data, and keeps one with data", async () => {
  const { ask, port } = await enter("root");
  const used = await ask("echo");
  used.write("one ");
  await once(used, "readable");
  const silent = Array.from({ length: MOST }, () => connect({ port, host: "127.0.0.1" }));
  onTestFinished(() => {
    for (const socket of silent) socket.destroy();
  });
  await once(silent[0] ?? used, "close"); // the oldest one
  const late = await ask("echo");
  late.end("late");
  expect(await text(late)).toBe("late");
  used.end("two");
  expect(await text(used)).toBe("one two");
  expect(silent.filter(({ closed }) => closed)).toHaveLength(2);
});

/**
 * Listens on a Unix socket, but accepts no connection until `accept` is called. `accept` resolves with the number of
 * connections that were in the queue. These connections and all later ones get the answer `reached`.
 */
async function listenLate(path: string, backlog: number): Promise<{ accept: () => Promise<number> }> {
  const script = `use Socket; $| = 1; socket(S, AF_UNIX, SOCK_STREAM, 0); bind(S, pack_sockaddr_un("${path}")) or die;
    listen(S, ${backlog}); print "listening"; <STDIN>; S->blocking(0);
    while (accept(my $client, S)) { push @queue, $client } print scalar(@queue); S->blocking(1); $SIG{PIPE} = "IGNORE";
    for (;;) { for (@queue) { syswrite $_, "reached" } @queue = (); accept(my $client, S); push @queue, $client }`;
  const child = spawn("/usr/bin/env", ["perl", "-MIO::Handle", "-e", script], { stdio: ["pipe", "pipe", "inherit"] });
  onTestFinished(() => void child.kill("SIGKILL"));
  await once(child.stdout, "data");
  const accept = async () => {
    child.stdin.write("\n");
    return Number((await once(child.stdout, "data")) as unknown);
  };
  return { accept };
}

/** How many of the bridge's connections wait in the queue of a Unix socket. The kernel lists them with the inode 0. */
function queueOf(bridge: number, path: string): number {
  const sockets = readFileSync(`/proc/${bridge}/net/unix`, "utf8").split("\n");
  return sockets.filter((line) => line.endsWith(path) && line.split(" ").filter(Boolean)[6] === "0").length;
}

it("a connection to a Unix socket waits while the queue of the socket is full", async () => {
  const { ask, sockets, bridge } = await enter("root");
  const target = await listenLate(join(sockets, "1.2.0"), 2);
  const clients = await Promise.all(Array.from({ length: 10 }, async () => await ask(`connect 127.1.2.0 ${WAY_OUT}`)));
  const answers = Promise.all(clients.map(async (client) => await text(client)));
  const first = await Promise.race([answers, new Promise((resolve) => setTimeout(resolve, 500, "wait"))]);
  expect(first).toBe("wait");
  const before = ticksOf(bridge);
  await new Promise((resolve) => setTimeout(resolve, 500));
  expect(ticksOf(bridge) - before, "the bridge does not poll in a circle").toBeLessThan(10);
  expect(await target.accept()).toBe(3); // the kernel queues one connection more than the backlog
  expect(await answers).toEqual(clients.map(() => "reached"));
});

it("connections that clients reset count toward the bridge's maximum until their target accepts them", async () => {
  const { ask, sockets, bridge } = await enter("root");
  const target = await listenLate(join(sockets, "1.2.0"), 2 * MOST);
  expect(await text(await ask(`reset 127.1.2.0 ${WAY_OUT} ${MOST + 100}`))).toBe("done");
  await eventually("the bridge has come to all of them", () => queueOf(bridge, "/1.2.0") >= MOST);
  expect(await target.accept()).toBe(MOST);
  expect(await text(await ask(`connect 127.1.2.0 ${WAY_OUT}`))).toBe("reached");
});

it("the bridge ends when its program ends, even if SIGKILL ends the program", async () => {
  const { child, bridge, port } = await enter("root", [], [LAUNCHER, "--read", "/", "--"]);
  child.kill("SIGKILL");
  await eventually("the bridge is gone", () => !isRunning(bridge));
  const server = createServer().listen(port, "127.0.0.1");
  await once(server, "listening");
  server.close();
});
