import { hrtimeMs } from "../hrtime.js";
import type { System } from "../system.js";
import { posixFiles } from "./file-systems.js";
import { posixProcesses } from "./processes.js";
import { lines } from "./run.js";

export function posix(platform: NodeJS.Platform): System {
  let boot: string | undefined;
  return {
    processes: posixProcesses(platform),
    files: posixFiles(platform),
    clock: {
      bootId: () => (boot ??= readBootId(platform)),
      nowMs: hrtimeMs,
    },
  };
}

/** A UUID of this boot. `kern.boottime` cannot serve as an id, because it changes when somebody sets the clock. */
function readBootId(platform: NodeJS.Platform): string {
  const name = platform === "darwin" ? "kern.bootsessionuuid" : "kernel.random.boot_id";
  const [id] = lines(platform, "sysctl", ["-n", name]);
  if (id === undefined) throw new Error(`sysctl ${name} printed nothing`);
  return id;
}
