import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const SCRIPT = fileURLToPath(new URL("../gateway-process.ts", import.meta.url));
const BUILT_SCRIPT = fileURLToPath(new URL("../http/door-process.mjs", import.meta.url));

/** A part of the benchmark in a separate process; see `gateway-process.ts`. */
export interface PartProcess extends Disposable {
  /** The address on which the part listens. */
  url: string;
  pid: number;
  /** Returns the memory of the part after a garbage collection. */
  memory(): Promise<NodeJS.MemoryUsage>;
}

/**
 * Starts a part of the benchmark.
 *
 * @param env the environment of the part; for a door, it sets up the fleet
 */
export async function startPart(args: readonly string[], env: NodeJS.ProcessEnv = process.env): Promise<PartProcess> {
  return await partOf(["--import", "tsx", SCRIPT, ...args], env);
}

/** Starts the HTTP API or the front door of the built library. */
export async function startBuilt(door: "http" | "door", env: NodeJS.ProcessEnv): Promise<PartProcess> {
  return await partOf([BUILT_SCRIPT, door], env);
}

async function partOf(args: readonly string[], env: NodeJS.ProcessEnv): Promise<PartProcess> {
  const child = spawn(process.execPath, ["--expose-gc", ...args], { env, stdio: ["pipe", "pipe", "inherit"] });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const next = async () => {
    const { value, done } = await lines.next();
    if (done === true) throw new Error(`${args.at(-1)} ended`);
    return JSON.parse(value) as unknown;
  };
  const { url } = (await next()) as { url: string };
  return {
    url,
    pid: child.pid ?? 0,
    memory: async () => {
      child.stdin.write("\n");
      return (await next()) as NodeJS.MemoryUsage;
    },
    [Symbol.dispose]: () => child.stdin.end(),
  };
}
