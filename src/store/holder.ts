import { system } from "../base/system/system.js";

/* A holder is a text that identifies the process that has a slot: its boot, PID namespace, PID and start time. */

let own: string | undefined;

/** Identifies the current boot of this machine by 8 letters and digits. */
function bootName(): string {
  return system()
    .clock.bootId()
    .replace(/[^a-z0-9]/gi, "")
    .toLowerCase()
    .slice(0, 8)
    .padEnd(8, "0");
}

export function ownHolder(): string {
  own ??= holderOf(process.pid, system().processes.find(process.pid)?.started ?? "");
  return own;
}

function holderOf(pid: number, started: string): string {
  const namespace = system().processes.namespace().replace(/\D/g, "");
  return [bootName(), namespace, pid, started.replace(/\W/g, "_")].join(".");
}

/** Whether the holder has ended. Null if this process cannot check that, because the boot or PID namespace differs. */
export function hasGone(holder: string): boolean | null {
  const [boot, namespace, pid = ""] = holder.split(".");
  const [ownBoot, ownNamespace] = ownHolder().split(".");
  if (boot !== ownBoot || namespace !== ownNamespace || !/^\d+$/.test(pid)) return null;
  const found = system().processes.find(Number(pid));
  return found === null || holderOf(found.pid, found.started) !== holder;
}
