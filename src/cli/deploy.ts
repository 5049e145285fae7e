import { loadConfig } from "../config/load.js";
import type { RenderedCompose } from "../deploy/compose.js";
import type { DeployOptions } from "../deploy/deployment.js";
import type { KubernetesOptions } from "../deploy/kubernetes/options.js";
import type { RenderedKubernetes } from "../deploy/kubernetes/render.js";
import type { RenderedSystemd, SystemdOptions } from "../deploy/systemd.js";

// The renderers, and the libraries that they need, are loaded when one of these is called: no other command pays for them.

export async function deployKubernetes(options: KubernetesOptions): Promise<RenderedKubernetes> {
  const { renderKubernetes } = await import("../deploy/kubernetes/render.js");
  return renderKubernetes(loadConfig(), options);
}

export async function deployCompose(options: DeployOptions): Promise<RenderedCompose> {
  const { renderCompose } = await import("../deploy/compose.js");
  return renderCompose(loadConfig(), options);
}

/** @param output Below which folder the files are written; none: they are only rendered. */
export async function deploySystemd(
  options: SystemdOptions,
  output: string | undefined,
): Promise<RenderedSystemd & { written: string[] }> {
  const { renderSystemd } = await import("../deploy/systemd.js");
  const rendered = renderSystemd(loadConfig(), options);
  if (output === undefined) return { ...rendered, written: [] };
  const { writeFiles } = await import("../deploy/write.js");
  return { ...rendered, written: await writeFiles(output, rendered.files) };
}
