import { spawnSync } from "node:child_process";
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  realpathSync,
  renameSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, it, onTestFinished } from "vitest";
import { tryBwrapAround } from "../../src/sandbox/bwrap.js";
import { launcherAlone, tryLauncher, trySetpriv } from "../../src/sandbox/landlock.js";
import { serverPaths } from "../../src/sandbox/paths.js";
import { bwrapProblem } from "../fixtures/programs/bwrap.js";
import { removeFolder } from "../fixtures/remove-folder.js";

/** Whether servers get a `/tmp` of their own. They do not if the launcher is in `/tmp`. */
const hasOwnTmp = !fileURLToPath(import.meta.url).startsWith("/tmp/");

const isRoot = process.getuid?.() === 0;

/** Makes a folder with these subfolders. It is outside of `/tmp`, so that servers can get their own `/tmp`. */
function folderOf(...names: string[]): string {
  const folder = realpathSync(mkdtempSync("/var/tmp/copilotfleet-bwrap-"));
  onTestFinished(() => removeFolder(folder));
  for (const name of names) mkdirSync(join(folder, name), { recursive: true });
  return folder;
}

interface Folders {
  home: string;
  temporary: string;
  read?: string[];
  write?: string[];
  named?: string[];
}

async function shell({ home, temporary, read = [], write = [], named = [] }: Folders) {
  const mechanism = await tryBwrapAround(await tryLauncher());
  if ("why" in mechanism) throw new Error(mechanism.why);
  const paths = serverPaths({
    ...{ hidden: [], runtimePath: "/bin/sh", own: [home, temporary], temporary },
    ...{ read: read.map((path) => realpathSync(path)), write: write.map((path) => realpathSync(path)), named },
  });
  return (script: string) => {
    const [program, ...args] = mechanism.wrap(["/bin/sh", "-c", script], paths);
    return spawnSync(program, args, { encoding: "utf8", cwd: home });
  };
}

it.skipIf(bwrapProblem !== undefined)(
  "in bwrap, paths with links, spaces and newlines work, and /tmp is the server's temporary folder on disk",
  async () => {
    const folder = folderOf("home", "tmp", "data", "bound to\nalice");
    symlinkSync("data", join(folder, "link"));
    symlinkSync(join(folder, "link"), join(folder, "link to a link"));
    const [linked, bound] = [join(folder, "link to a link"), join(folder, "bound to\nalice")];
    const run = await shell({
      ...{ home: join(folder, "home"), temporary: join(folder, "tmp") },
      ...{ write: [linked, bound], named: [linked, bound] },
    });
    const temporary = hasOwnTmp ? "/tmp" : join(folder, "tmp");
    const write = `echo x > '${linked}/file' && echo x > '${bound}/file' && echo x > '${temporary}/file' && pwd`;
    expect(run(write)).toMatchObject({
      status: 0,
      stdout: `${join(folder, "home")}\n`,
      stderr: "",
    });
    for (const file of ["data/file", "bound to\nalice/file", "tmp/file"])
      expect(existsSync(join(folder, file))).toBe(true);
  },
);

it.skipIf(bwrapProblem !== undefined)(
  "in bwrap, a program sees only its own files and processes, and root keeps only capabilities for files",
  async () => {
    const folder = folderOf("home", "tmp", "secret");
    writeFileSync(join(folder, "secret", "file"), "");
    const run = await shell({ home: join(folder, "home"), temporary: join(folder, "tmp") });
    expect(run(`[ -e '${join(folder, "secret")}' ]`).status).toBe(1);
    expect(run("set -- /proc/[0-9]*; echo $#").stdout.trim()).toBe("2"); // process 1 and the shell
    const capabilities = run("sed -n 's/^Cap[A-Za-z]*:.0*//p' /proc/self/status").stdout;
    expect(capabilities).toBe(isRoot ? "\n1b\n1b\n1b\n\n" : "\n\n\n\n\n");
    expect(run("echo x > /file").status).not.toBe(0);
    expect(run(`mkdir '${join(folder, "new")}'`).status).not.toBe(0);
  },
);

it.skipIf(bwrapProblem !== undefined)(
  "in bwrap, a program has the PID that the bwrap process has outside, and bwrap exits with the program's status",
  async () => {
    const folder = folderOf("home", "tmp");
    const run = await shell({ home: join(folder, "home"), temporary: join(folder, "tmp") });
    const { pid, stdout, status } = run("echo $$; exit 7");
    expect({ inner: stdout.trim(), status }).toEqual({ inner: String(pid), status: 7 });
    expect(run("kill -9 $$")).toMatchObject({ status: 128 + 9, stderr: "" });
  },
);

it.skipIf(bwrapProblem !== undefined)(
  "in bwrap, a granted folder inside the server's home gets no mount of its own, and is writable",
  async () => {
    const folder = folderOf("home/inner", "tmp");
    const [home, inner] = [join(folder, "home"), join(folder, "home", "inner")];
    const run = await shell({ home, temporary: join(folder, "tmp"), read: [inner] });
    expect(run(`grep -c '${folder}' /proc/self/mounts`).stdout.trim()).toBe("2");
    expect(run(`echo x > '${inner}/file'`).status).toBe(0);
  },
);

it.skipIf(bwrapProblem !== undefined).each(["before", "after"])(
  "a server does not start in bwrap if a link replaced a granted folder %s the fleet built the command",
  async (moment) => {
    const folder = folderOf("home", "tmp", "work/of alice", "secret");
    writeFileSync(join(folder, "secret", "file"), "a secret");
    const bound = join(folder, "work", "of alice");
    const mechanism = await tryBwrapAround(await tryLauncher());
    if ("why" in mechanism) throw new Error(mechanism.why);
    const paths = serverPaths({
      ...{ hidden: [], runtimePath: "/bin/sh", own: [join(folder, "home"), join(folder, "tmp")] },
      ...{ read: [], write: [bound] },
    });
    const replace = () => {
      renameSync(bound, `${bound}.old`);
      symlinkSync(join(folder, "secret"), bound);
    };
    if (moment === "before") replace();
    const wrapped = () => mechanism.wrap(["/bin/sh", "-c", `cat '${bound}/file'`], paths);
    if (moment === "before") return expect(wrapped).toThrow("was removed or replaced by a link");
    const [program, ...args] = wrapped();
    replace();
    expect(spawnSync(program, args, { encoding: "utf8" })).toMatchObject({
      status: 126,
      stdout: "",
      stderr: "A folder of the sandbox was replaced while bwrap started.\n",
    });
  },
);

it.skipIf(!isRoot || bwrapProblem !== undefined)(
  "in bwrap, root can use files of other accounts in the folders of the server, and give files to other accounts",
  async () => {
    const folder = folderOf("home", "tmp", "work");
    const work = join(folder, "work");
    writeFileSync(join(work, "file"), "of another account", { mode: 0o600 });
    for (const path of [work, join(work, "file")]) chownSync(path, 4_321, 4_321);
    chmodSync(work, 0o700);
    const run = await shell({ home: join(folder, "home"), temporary: join(folder, "tmp"), write: [work] });
    const script = `cat '${work}/file' && echo x > '${work}/file' && touch '${work}/new' && chown 4321 '${work}/new'`;
    expect(run(script)).toMatchObject({ status: 0, stdout: "of another account", stderr: "" });
    expect(statSync(join(work, "new")).uid).toBe(4_321);
  },
);

it.each([{ by: "the launcher", attempt: tryLauncher }, ...(isRoot ? [] : [{ by: "setpriv", attempt: trySetpriv }])])(
  "a program under $by reaches the granted files and folders, and nothing beside them",
  async ({ attempt }) => {
    const mechanism = await attempt();
    if ("why" in mechanism) throw new Error(mechanism.why);
    const folder = realpathSync(mkdtempSync(join(tmpdir(), "copilotfleet-landlock-")));
    onTestFinished(() => removeFolder(folder));
    const [home, tools, notes, secret] = ["home", "tools", "notes", "secret"].map((name) => join(folder, name)) as [
      string,
      string,
      string,
      string,
    ];
    for (const path of [home, tools]) mkdirSync(path);
    for (const path of [notes, secret, join(tools, "tool")]) writeFileSync(path, "text");
    const paths = serverPaths({ hidden: [], runtimePath: "/bin/sh", own: [home], read: [tools], write: [notes] });
    const succeeds = (script: string) => {
      const [program, ...args] = mechanism.wrap(["/bin/sh", "-c", script], paths);
      return spawnSync(program, args).status === 0;
    };
    const tried = {
      writesHome: succeeds(`echo x > '${home}/new' && rm '${home}/new' && mkdir '${home}/folder'`),
      writesFile: succeeds(`echo x > '${notes}'`),
      readsTools: succeeds(`cat '${tools}/tool' > /dev/null`),
      writesTools: succeeds(`echo x > '${tools}/tool'`),
      readsSecret: succeeds(`cat '${secret}'`),
      writesSecret: succeeds(`echo x > '${secret}'`),
      listsFolder: succeeds(`ls '${folder}'`),
    };
    expect(tried).toEqual({
      writesHome: true,
      writesFile: true,
      readsTools: true,
      writesTools: false,
      readsSecret: false,
      writesSecret: false,
      listsFolder: false,
    });
  },
);

it.skipIf(!isRoot)(
  "Landlock alone is not offered to root, because root could change the modes of all files",
  async () => {
    const why = "Landlock alone cannot restrict root (run the fleet as an ordinary user, or install bubblewrap)";
    expect(launcherAlone(await tryLauncher())).toEqual({ why });
    expect(await trySetpriv()).toEqual({ why });
  },
);
