// Declarations of the parts of ComfyUI's frontend that web/js uses. The frontend serves both
// modules, so the imports in web/js name no file of this repository.

declare module "*/scripts/app.js" {
  export const app: ComfyUI.App;
}

declare module "*/scripts/api.js" {
  export const api: ComfyUI.Api;
}

declare var LiteGraph: { vueNodesMode?: boolean } | undefined;

declare namespace ComfyUI {
  type NodeId = number | string;

  interface App {
    /** The graph of the whole workflow; older frontends only have `graph`. */
    rootGraph: Graph;
    graph: Graph;
    canvas: Canvas;
    registerExtension(extension: Extension): void;
    refreshComboInNodes(): Promise<void>;
  }

  interface Extension {
    name: string;
    setup?(): void;
    nodeCreated?(node: Node): void;
    afterConfigureGraph?(): void;
  }

  interface Api {
    apiURL(route: string): string;
    fetchApi(route: string, options?: RequestInit): Promise<Response>;
    addEventListener(type: string, listener: (event: CustomEvent) => void): void;
  }

  interface Canvas {
    canvas: HTMLCanvasElement;
    graph: Graph | null;
    emitBeforeChange(): void;
    emitAfterChange(): void;
    processMouseWheel(event: WheelEvent): void;
  }

  interface Graph {
    id: string;
    nodes: Node[];
    subgraphs: Map<string, Graph>;
    getNodeById(id: NodeId | undefined): Node | null;
    getLink(id: number | null | undefined): Link | undefined;
  }

  interface Link {
    origin_id: NodeId;
    origin_slot: number;
  }

  interface Input {
    name: string;
    link: number | null;
  }

  interface Widget {
    name: string;
    value: unknown;
    hidden?: boolean;
    serialize?: boolean;
    options: { hidden?: boolean };
    callback?: (...args: unknown[]) => unknown;
  }

  interface DOMWidgetOptions {
    serialize: boolean;
    hideOnZoom: boolean;
    getMinHeight(): number;
    getValue(): string;
    setValue(value: string): void;
  }

  interface Node {
    type: string;
    comfyClass?: string;
    graph: Graph | null;
    subgraph?: Graph;
    inputs?: Input[];
    widgets?: Widget[];
    imgs?: HTMLImageElement[];
    properties: Record<string, unknown>;
    size: [number, number];
    computeSize(): [number, number];
    setSize(size: [number, number]): void;
    setDirtyCanvas?(foreground: boolean, background: boolean): void;
    addDOMWidget(
      name: string,
      type: string,
      element: HTMLElement,
      options: DOMWidgetOptions,
    ): Widget;
    onConfigure?(...args: unknown[]): unknown;
    onConnectionsChange?(...args: unknown[]): unknown;
    onAdded?(...args: unknown[]): unknown;
    onRemoved?(...args: unknown[]): unknown;
  }
}
